"""wrk sends as many requests as a server answers, over connections that stay open or that end after each request.

Its latencies are not used: wrk waits for a slow response before it sends the next request, and so hides the delay.
"""

import re
import shutil
import signal
import subprocess

from perf.common.server import Failed


def available():
    """Return whether the command wrk is installed."""
    return shutil.which('wrk') is not None


def saturate(port, connections, seconds, scheme='http'):
    """Run wrk for `seconds` and return (requests answered, seconds it took)."""
    command = ['wrk', '-t1', f'-c{connections}', f'-d{max(1, round(seconds))}s', f'{scheme}://127.0.0.1:{port}/']
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    report = re.search(r'(\d+) requests in ([\d.]+)(ms|s|m),', done.stdout)
    if report is None or not int(report[1]):
        raise Failed(f'wrk: {done.stdout.strip() or done.stderr.strip()}')
    return int(report[1]), float(report[2]) * {'ms': 0.001, 's': 1, 'm': 60}[report[3]]


class Wrk:
    """wrk in the background, over `connections` connections, until `end` is called."""

    def __init__(self, port, path, connections, longest=3600):
        self.process = subprocess.Popen(
            ['wrk', '-t2', f'-c{connections}', f'-d{longest}s', f'http://127.0.0.1:{port}{path}'],
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self):
        """Stop wrk; return the requests answered, the errors by kind, and the responses other than 2xx and 3xx."""
        self.process.send_signal(signal.SIGINT)
        text, _ = self.process.communicate(timeout=30)
        report = re.search(r'(\d+) requests in', text)
        if report is None or not int(report[1]):
            raise Failed(f'wrk: {text.strip()}')
        errors = re.search(r'Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)', text)
        kinds = ('connect', 'read', 'write', 'timeout')
        found = dict(zip(kinds, map(int, errors.groups()), strict=True)) if errors else {}
        others = re.search(r'Non-2xx or 3xx responses: (\d+)', text)
        return {'requests': int(report[1]), 'errors': found, 'other_answers': int(others[1]) if others else 0}
