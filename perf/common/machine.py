"""The machine: its cores, its limits, and the words that say which machine it was.

Owns the questions to the operating system. The rule: what cannot be had is said, never passed over.
"""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata

PACKAGES = ('uvloop', 'gevent', 'twisted', 'tornado', 'trio', 'pyftpdlib', 'pyasyncore')


def cores():
    """(core of the server, core of the load), or (None, None) where processes cannot be pinned to two of them."""
    if not hasattr(os, 'sched_setaffinity'):
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else (None, None)


@contextlib.contextmanager
def on_core(core):
    """Whatever is started inside runs on `core`, with all of its threads."""
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
    """A command before another that has it run whenever it can (real-time priority); nothing where that is forbidden.

    For what is measured beside a load on the same cores, which in earnest would come from other machines. Not for what
    may take all of a core: Linux stops that for 50 ms in each second.
    """
    command = ('chrt', '-f', str(priority))
    try:
        subprocess.run([*command, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return command


def raise_descriptor_limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def first_line(*command):
    """What a command says of itself, or None where it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if lines else None


def commit(folder):
    """The commit that was measured; `+` marks changes on top of it."""
    name = first_line('git', '-C', str(folder), 'rev-parse', '--short', 'HEAD')
    return name and name + ('+' if first_line('git', '-C', str(folder), 'status', '--porcelain', '-uno') else '')


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
    return {name: version for name, version in found.items() if version}


def description():
    return {
        'system': f'{platform.system()} {platform.release()}',
        'processor': processor(),
        'cores': os.cpu_count(),
        'memory_mb': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20,
        'interpreter': sys.implementation.name,
    }


class OtherLoad:
    """How much of the machine other processes use from now on: what disturbs a measurement."""

    def __init__(self):
        self.began = self._now()

    def cores(self):
        """Cores that were busy for others, on the average; 0 where it cannot be told."""
        began, now = self.began, self._now()
        if not now or now[0] == began[0]:
            return 0.0
        busy, ours = now[1] - began[1], now[2] - began[2]
        return max(0.0, (busy - ours) / (now[0] - began[0]))

    def _now(self):
        """(clock, seconds that all cores were busy, seconds of them for us and our children that have ended)."""
        try:
            with open('/proc/stat') as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, _irq, _softirq, steal = ticks  # interrupts: nobody knows for whom
        times = os.times()
        return times.elapsed, (user + nice + system + steal) / os.sysconf('SC_CLK_TCK'), sum(times[:4])
