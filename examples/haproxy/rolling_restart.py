"""Restart the workers behind HAProxy one after the other, and lose no request.

Run it:    python examples/haproxy/rolling_restart.py haproxy.sock 'systemctl restart worker@{port}'

Each worker in turn gets no new work; its last requests end; COMMAND restarts it, with {name} and {port} filled in;
HAProxy gives it work again after good health checks, and then the next one follows. When a worker does not come back,
the others are left as they are.
"""

import argparse
import csv
import socket
import subprocess
import sys
import time
from functools import partial

LOOK = 0.05  # seconds between two looks at HAProxy's figures


class Refused(Exception):
    """HAProxy did not do what it was told, or a worker did not come back."""


class Admin:
    """HAProxy's runtime socket: one command for each connection."""

    def __init__(self, path):
        self.path = path

    def tell(self, command):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(command.encode() + b'\n')
            answer = b''.join(iter(lambda: sock.recv(65536), b'')).decode().strip()
        if answer and not answer.startswith('#'):
            raise Refused(f'HAProxy says to {command!r}: {answer}')
        return answer

    def servers(self, *names):
        """A row of figures for each server of each backend: svname, pxname, addr, scur, qcur, status ..."""
        rows = csv.DictReader(self.tell('show stat -1 4 -1').removeprefix('# ').splitlines())
        return [row for row in rows if not names or row['svname'] in names]

    def set(self, name, what):
        for row in self.servers(name):
            self.tell(f'set server {row["pxname"]}/{name} {what}')

    def wait(self, name, seconds, reached):
        """Whether `reached(row)` holds in every backend within so many seconds."""
        end = time.monotonic() + seconds
        while not all(reached(row) for row in self.servers(name)):
            if time.monotonic() > end:
                return False
            time.sleep(LOOK)
        return True


def is_idle(row):
    return row['scur'] == row['qcur'] == '0'


def is_up(row):
    return row['status'] == 'UP'


def restart_one(admin, name, restart, drain=30, start=30):
    """Returns whether it works again; `restart()` may return before the new one listens."""
    admin.set(name, 'state drain')
    admin.wait(name, drain, is_idle)  # whoever is still there is the worker's own drain's concern
    restart()
    # Not what was known of the old one counts: from here on it takes good checks of the new one.
    admin.set(name, 'health down')
    admin.set(name, 'state ready')
    return admin.wait(name, start, is_up)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('socket', help="HAProxy's `stats socket`, of level admin")
    options.add_argument('command', help='a shell command that restarts one worker: {name} and {port} are filled in')
    options.add_argument('names', nargs='*', help='of servers (default: all, in the order of the configuration)')
    options.add_argument('--drain', type=float, default=30, help='seconds to wait for the last requests (default 30)')
    options.add_argument('--start', type=float, default=30, help='seconds to wait for good checks (default 30)')
    args = options.parse_args()
    admin = Admin(args.socket)

    def restart(name, port):
        subprocess.run(args.command.format(name=name, port=port), shell=True, check=True)

    ports = {row['svname']: row['addr'].rpartition(':')[2] for row in admin.servers(*args.names)}
    for name, port in ports.items():
        print(f'{name}, port {port}', flush=True)
        if not restart_one(admin, name, partial(restart, name, port), args.drain, args.start):
            raise Refused(f'{name} does not come back; the others are as they were')


if __name__ == '__main__':
    try:
        main()
    except (Refused, OSError, subprocess.CalledProcessError) as exc:
        sys.exit(f'{sys.argv[1]}: {exc}')
