"""System calls per request, counted by strace.

strace slows down the process it traces, so this is a separate pass without timing. Our own loads send a known number of
requests, and every system call that the server makes during the load is counted.
"""

import re
import shutil
import signal
import subprocess
import tempfile
import time

from perf.common.server import Failed, Server
from perf.loads.native import load

SECONDS = 1.0  # length of a load
CONNECTIONS = 10  # few, because the requests in flight at the end are not counted
COUNTED = {'keepalive', 'churn', 'churn_defer', 'echo64k', 'twice', 'pipeline', 'small', 'unix', 'udp'}


def count_all(workloads, found, window, say):
    """Return {workload: {peer: calls per request}} for workloads in COUNTED; {} where strace is not installed."""
    counted = [workload for workload in workloads if workload.name in COUNTED]
    if counted and not shutil.which('strace'):
        say('left out: system calls per request: the command strace is not installed')
        return {}
    result = {}
    for workload in counted:
        result[workload.name] = {}
        for peer in workload.peers(found):
            try:
                calls = count(peer, workload, window.server_core)
            except (Failed, OSError, subprocess.SubprocessError) as exc:
                say(f'system calls of {peer.name}: {exc}')
                continue
            result[workload.name][peer.name] = calls
            say(f'strace  {workload.name:<10} {peer.name:<10} {calls:.2f} system calls/request')
    return result


def count(peer, workload, core):
    """Return how many system calls one peer makes for each request of a workload."""
    with Server(peer, workload.server, core) as server, tempfile.NamedTemporaryFile('r') as report:
        command = ['strace', '-f', '-c', '-o', report.name, '-p', str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                if 'attached' not in tracer.stderr.readline():
                    raise Failed('strace is not allowed to attach to the server')
                answered = load(server.address, SECONDS, **workload.shape | {'connections': CONNECTIONS})['answered']
                time.sleep(0.1)
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.communicate(timeout=10)
        if not answered:
            raise Failed('no request was answered')
        return total(report.read()) / answered


def total(text):
    """Return the number of calls in a table that `strace -c` printed."""
    found = re.search(r'^\s*[\d.]+\s+[\d.]+\s+\d*\s+(\d+)\s+(?:\d+\s+)?total$', text, re.MULTILINE)
    if found is None:
        raise Failed('strace reported nothing')
    return int(found[1])
