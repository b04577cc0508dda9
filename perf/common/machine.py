"""The machine: its cores, its limits, and the facts that identify it in a report.

Facts that the operating system does not report are None or empty, and the caller reports that they are unknown.
"""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata

PACKAGES = ('uvloop', 'rloop', 'zuvloop', 'gevent', 'twisted', 'tornado', 'trio', 'pyftpdlib', 'pyasyncore')


def cores():
    """Return (core of the server, core of the load), or (None, None) where processes cannot be pinned to two cores."""
    if not hasattr(os, 'sched_setaffinity'):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else (None, None)


@contextlib.contextmanager
def on_core(core):
    """Pin every process that is started inside the `with` block to `core`, with all of its threads."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ahead_of_others(priority=1):
    """Return a prefix that gives a command real-time priority, or () where real-time priority is forbidden.

    Use it for a process that is measured while load runs on the same cores: in production, that load would come from
    other machines. Do not use it for a process that may take a whole core: Linux would stop that process for 50 ms in
    each second.
    """
    command = ('chrt', '-f', str(priority))
    try:
        subprocess.run([*command, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return command


def raise_descriptor_limit():
    """Raise the soft limit of descriptors to the hard limit, and return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def first_line(*command):
    """Return the first line that a command prints to stdout or stderr, even on failure; None if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if lines else None


def commit(folder):
    """Return the short hash of the checked-out commit, with a `+` when tracked files were changed.

    None where there is no git or no checkout.
    """
    name = first_line('git', '-C', str(folder), 'rev-parse', '--short', 'HEAD')
    if name is None or name.startswith('fatal:'):
        return None
    return name + ('+' if first_line('git', '-C', str(folder), 'status', '--porcelain', '-uno') else '')


def processor():
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
        for line in file:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def versions():
    found = {'python': platform.python_version(), 'node': first_line('node', '--version')}
    found['cc'] = first_line('cc', '--version')
    found['wrk'] = (first_line('wrk', '-v') or '').partition('[')[0].strip() or None
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    found['jit'] = jit()
    return {name: version for name, version in found.items() if version}


def jit():
    """Return 'on' or 'off', or None where this Python has no JIT."""
    known = getattr(sys, '_jit', None)
    return None if known is None or not known.is_available() else 'on' if known.is_enabled() else 'off'


def description():
    return {
        'system': f'{platform.system()} {platform.release()}',
        'processor': processor(),
        'cores': os.cpu_count(),
        'memory_mb': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20,
        'interpreter': sys.implementation.name,
    }


class OtherWork:
    """Measures how many cores other processes use from now on, because their work disturbs a measurement."""

    def __init__(self):
        self.began = self._now()

    def cores(self):
        """Return how many cores other processes used, on average; 0 where the operating system does not report it."""
        began, now = self.began, self._now()
        if not now or now[0] == began[0]:
            return 0.0
        busy, ours = now[1] - began[1], now[2] - began[2]
        return max(0.0, (busy - ours) / (now[0] - began[0]))

    def _now(self):
        """Return (clock, busy seconds of all cores, seconds used by this process and its children that have ended)."""
        try:
            with open('/proc/stat') as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, _irq, _softirq, steal = ticks  # no process is charged for interrupts
        times = os.times()
        return times.elapsed, (user + nice + system + steal) / os.sysconf('SC_CLK_TCK'), sum(times[:4])
