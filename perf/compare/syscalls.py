"""System calls per request, counted by strace in a pass of its own, since strace slows down what it watches.

Owns the pass. The rule: a counted number of requests over connections of our own, and every call between the first and
the last of them.
"""

import re
import shutil
import signal
import subprocess
import tempfile
import time

from perf.common.server import Failed, Server
from perf.loads import closed_loop

CONNECTIONS = 10
REQUESTS = 1000
SECONDS = 20  # at most
LOADS = {
    'keepalive': lambda port: closed_loop.keep_alive(port, CONNECTIONS, SECONDS, 100, REQUESTS),
    'churn': lambda port: closed_loop.reconnect(port, CONNECTIONS, SECONDS, REQUESTS),
}


def count_all(workloads, found, window, say):
    """{workload: {peer: calls per request}} for those that are counted; nothing where there is no strace."""
    counted = [workload for workload in workloads if workload.name in LOADS]
    if counted and not shutil.which('strace'):
        say('left out: system calls per request: there is no command strace')
        return {}
    result = {}
    for workload in counted:
        result[workload.name] = {}
        for peer in workload.peers(found):
            try:
                calls = count(peer, workload.name, window.server_core)
            except (Failed, OSError, subprocess.SubprocessError) as exc:
                say(f'system calls of {peer.name}: {exc}')
                continue
            result[workload.name][peer.name] = calls
            say(f'strace  {workload.name:<10} {peer.name:<10} {calls:.2f} system calls/request')
    return result


def count(peer, workload, core):
    with Server(peer, workload, core) as server, tempfile.NamedTemporaryFile('r') as report:
        command = ['strace', '-f', '-c', '-o', report.name, '-p', str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                if 'attached' not in tracer.stderr.readline():
                    raise Failed('strace may not attach')
                answered, _ = LOADS[workload](server.port)
                time.sleep(0.1)
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.communicate(timeout=10)
        return total(report.read()) / answered


def total(text):
    """All calls in a table of strace -c."""
    found = re.search(r'^\s*[\d.]+\s+[\d.]+\s+\d*\s+(\d+)\s+(?:\d+\s+)?total$', text, re.MULTILINE)
    if found is None:
        raise Failed('strace reported nothing')
    return int(found[1])
