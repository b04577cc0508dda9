"""Soak the reactor: mixed traffic with faults, for any length of time: `python -m perf.soak`; --help lists the options.

This process starts a server and a driver, causes faults from outside, and writes a row every ten seconds. Rows are
written at once, so a run that was interrupted can still be judged (`--report FILE`). At the end all traffic stops, and
the promises are judged against a base row that was taken in the same quiet state.
"""

import argparse
import datetime
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perf.common import machine
from perf.common.server import PROJECT, Measured, resident

from . import promises

SAMPLE, STOP, FLOOD = 10, 41, 97  # intervals in seconds: rows, stops of the driver, floods
FLOOD_OVER_LIMIT = 1.1  # connections of a flood, as a multiple of the server's descriptor limit
ANSWER = 60  # seconds within which a command must be answered
SUBJECT = ('-subj', '/CN=soak', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1')


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        'python -m perf.soak', description='Soak the reactor: mixed traffic with faults, on loopback.'
    )
    parser.add_argument('--minutes', type=float, default=30, help='length of the run, default 30')
    parser.add_argument('--rate', type=float, default=150, help='new connections a second, default 150')
    parser.add_argument(
        '--seed', type=int, default=None, help='seed for all random choices, default a new one each time'
    )
    parser.add_argument('--patience', type=float, default=5, help="the server's time limits in seconds, default 5")
    parser.add_argument('--descriptors', type=int, default=2000, help='descriptor limit of the server, default 2000')
    out = PROJECT / 'perf' / 'out' / 'soak.jsonl'
    parser.add_argument('--out', type=Path, default=out, metavar='FILE', help='file for the rows, default %(default)s')
    parser.add_argument('--report', type=Path, metavar='FILE', help='judge the rows of an earlier run, complete or not')
    args = parser.parse_args(argv)
    args.seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    return args


class Process(Measured):
    """The server or the driver, and a socket for commands to it."""

    def __init__(self, module, *args):
        ours, theirs = socket.socketpair()
        number = str(theirs.fileno())
        command = [sys.executable, '-m', f'perf.soak.{module}', number, *map(str, args)]
        environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        ours.settimeout(ANSWER)
        self.pid = self.process.pid
        self.socket, self.file = ours, ours.makefile('rwb')
        self.hello = self.read()

    def read(self):
        line = self.file.readline()
        if not line:
            raise SystemExit(f'process {self.pid} ended with status {self.process.wait()}')
        return json.loads(line)

    def ask(self, *command):
        self.file.write(json.dumps(command).encode() + b'\n')
        self.file.flush()
        return self.read()

    def sample(self):
        """Return the counts that the process reports, and its resources according to the operating system."""
        counts = self.ask('sample')
        return {'rss': resident(self.pid), 'cpu': self.cpu(), 'descriptors': self.descriptors(), **counts}

    def end(self):
        """Close the socket, which makes the process end, and return its exit status."""
        self.file.close()
        self.socket.close()
        try:
            return self.process.wait(ANSWER)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Soak:
    """One run: both processes, and the file of rows."""

    def __init__(self, args, folder):
        self.args = args
        self.random = random.Random(args.seed)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        self.out = args.out.open('w')
        names = ('minutes', 'rate', 'seed', 'patience', 'descriptors')
        settings = {name: getattr(args, name) for name in names}
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        what = {'date': date, 'commit': machine.commit(PROJECT), 'python': platform.python_version()}
        self.began = time.monotonic()
        self.write('start', settings=settings, machine=machine.description(), **what)
        make_certificate(folder)
        self.server = Process('server', args.patience, args.descriptors, folder)
        ports = json.dumps(self.server.hello)
        self.driver = Process('driver', args.seed, args.rate, args.patience, folder, ports)

    def write(self, kind, **row):
        self.out.write(json.dumps({'row': kind, 'seconds': round(time.monotonic() - self.began, 3), **row}) + '\n')
        self.out.flush()

    def sample(self, kind, **more):
        row = {'server': self.server.sample(), 'driver': self.driver.sample(), **more}
        self.write(kind, **row)
        driver, server = row['driver'], row['server']
        seconds = time.monotonic() - self.began
        text = f'{seconds:7.0f} s  {kind:<6} {driver["opened"]:>9,} opened {driver["open"]:>5,} open  '
        text += f'server {server["rss"] / 1e6:6.1f} MB {server["descriptors"]:>5,} descriptors '
        text += f'{server["objects"]:>7,} objects  {driver["faults"]} faults'
        print(text, file=sys.stderr, flush=True)

    def run(self):
        self.warm_up()
        self.rest()
        self.sample('base')
        self.server.ask('rest', False)
        self.driver.ask('drive', True)
        self.disturb_and_sample()
        self.driver.ask('drive', False)
        self.rest()
        before, began = self.server.cpu(), time.monotonic()
        time.sleep(min(self.args.patience, 5))
        idle_cpu = (self.server.cpu() - before) / (time.monotonic() - began)
        last = {'server': self.server.sample(), 'driver': self.driver.sample()}
        codes = [self.driver.end(), self.server.end()]
        self.write('end', idle_cpu=idle_cpu, codes=codes, **last)

    def warm_up(self):
        """Before the base row, do everything once, including a flood, so that caches are filled."""
        self.driver.ask('some_of_each')
        self.signal()
        time.sleep(self.args.patience / 2)
        self.flood()
        time.sleep(self.args.patience)

    def disturb_and_sample(self):
        """Cause faults and write rows until the time of the run is over."""
        length = self.args.minutes * 60
        began = time.monotonic()
        due = {self.take_sample: SAMPLE, self.stop_driver: STOP, self.flood: FLOOD, self.signal: 1}
        # Cause each fault at least once, even in a short run.
        due = {action: [began + min(period, length / 3), period] for action, period in due.items()}
        while (now := time.monotonic()) < began + length:
            for action, times in due.items():
                if times[0] <= now:
                    times[0] += times[1]
                    action()
            time.sleep(0.05)

    def take_sample(self):
        self.sample('sample')

    def flood(self):
        count = int(self.args.descriptors * FLOOD_OVER_LIMIT)
        self.driver.ask('flood', count, count / 5000 + self.args.patience / 2)

    def stop_driver(self):
        os.kill(self.driver.pid, signal.SIGSTOP)
        try:
            time.sleep(self.random.uniform(0.1, 1.5) * self.args.patience)
        finally:
            os.kill(self.driver.pid, signal.SIGCONT)

    def signal(self):
        os.kill(self.server.pid, signal.SIGUSR1)

    def rest(self):
        """Stop all traffic. Clients that are still connected after twice the patience are aborted."""
        self.server.ask('rest', True)
        until = time.monotonic() + 2 * self.args.patience
        while self.driver.ask('still_open') and time.monotonic() < until:
            time.sleep(0.1)
        self.driver.ask('stop')
        until = time.monotonic() + 10 * self.args.patience
        while time.monotonic() < until:
            if not self.driver.ask('still_open') and not self.server.ask('sample')['open']:
                return
            time.sleep(0.1)

    def end(self):
        for process in (self.driver, self.server):
            process.end()


def make_certificate(folder):
    """Create the server's certificate, which the clients trust."""
    new = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '30')
    files = ('-keyout', f'{folder}/server.key', '-out', f'{folder}/server.pem')
    subprocess.run(['openssl', 'req', '-x509', *new, *files, *SUBJECT], check=True, capture_output=True)


def main(argv=None):
    args = arguments(argv)
    path = args.report
    if path is None:
        path = args.out
        print(f'seed {args.seed}, rows in {path}', file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            soak = Soak(args, folder)
            try:
                soak.run()
            except KeyboardInterrupt:
                print('interrupted; the report covers the run so far', file=sys.stderr)
            finally:
                soak.end()
    text, kept = promises.report(promises.read(path))
    print(text)
    return 0 if kept else 1


if __name__ == '__main__':
    sys.exit(main())
