"""Restart the workers behind HAProxy one after another, without failing a request.

    $ python examples/haproxy/rolling_restart.py haproxy.sock 'systemctl restart app@{port}'
    w1, port 8081
    w2, port 8082

HAProxy stops sending work to the first worker, and the worker finishes its last requests. Then the command, in which
{name} and {port} are replaced, restarts it. After successful health checks, HAProxy sends work to it again, and it is
the next worker's turn. If a worker does not come up again, the remaining workers are not restarted.
"""

import argparse
import csv
import socket
import subprocess
import sys
import time
from functools import partial

POLL_INTERVAL = 0.05  # seconds between two queries of HAProxy's statistics


class Refused(Exception):
    """Raised when HAProxy refuses a command, or a worker does not come up again."""


class Admin:
    """HAProxy's runtime socket, which accepts one command on each connection."""

    def __init__(self, path):
        self.path = path

    def send(self, command):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(command.encode() + b'\n')
            answer = b''.join(iter(lambda: sock.recv(65536), b'')).decode().strip()
        if answer and not answer.startswith('#'):
            raise Refused(f'HAProxy refused {command!r}: {answer}')
        return answer

    def servers(self, *names):
        """Return a row of statistics for each server in each backend: svname, pxname, addr, scur, qcur, status ..."""
        rows = csv.DictReader(self.send('show stat -1 4 -1').removeprefix('# ').splitlines())
        return [row for row in rows if not names or row['svname'] in names]

    def set(self, name, what):
        for row in self.servers(name):
            self.send(f'set server {row["pxname"]}/{name} {what}')

    def wait(self, name, seconds, reached):
        """Wait until `reached(row)` is true in every backend. Return False if it is not true after `seconds`."""
        end = time.monotonic() + seconds
        while not all(reached(row) for row in self.servers(name)):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_INTERVAL)
        return True


def is_idle(row):
    return row['scur'] == row['qcur'] == '0'


def is_up(row):
    return row['status'] == 'UP'


def restart_one(admin, name, restart, drain=30, start=30):
    """Restart one worker and return whether it is up again. `restart()` may return before the new process listens."""
    admin.set(name, 'state drain')
    admin.wait(name, drain, is_idle)  # connections that are left after the timeout end during the worker's own drain
    restart()
    # Discard the health checks of the old process, so that the new process gets no work before it has passed its own.
    admin.set(name, 'health down')
    admin.set(name, 'state ready')
    return admin.wait(name, start, is_up)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('socket', help="HAProxy's `stats socket`, of level admin")
    options.add_argument('command', help='a shell command that restarts one worker; {name} and {port} are filled in')
    options.add_argument('names', nargs='*', help='servers to restart (default: all, in configuration order)')
    options.add_argument('--drain', type=float, default=30, help='seconds to wait for the last requests (default 30)')
    options.add_argument('--start', type=float, default=30, help='seconds to wait for good health checks (default 30)')
    args = options.parse_args()
    admin = Admin(args.socket)

    def restart(name, port):
        subprocess.run(args.command.format(name=name, port=port), shell=True, check=True)

    ports = {row['svname']: row['addr'].rpartition(':')[2] for row in admin.servers(*args.names)}
    for name, port in ports.items():
        print(f'{name}, port {port}', flush=True)
        if not restart_one(admin, name, partial(restart, name, port), args.drain, args.start):
            raise Refused(f'{name} was not up again after {args.start:g} s; the remaining workers were not restarted')


if __name__ == '__main__':
    try:
        main()
    except (Refused, OSError, subprocess.CalledProcessError) as exc:
        sys.exit(f'{sys.argv[1]}: {exc}')
