"""Restart the workers behind HAProxy one after another, without failing a request.

    $ python examples/haproxy/rolling_restart.py haproxy.sock 'systemctl restart app@{port}'
    w1, port 8081
    w2, port 8082

HAProxy stops sending work to the first worker, and the worker finishes its last requests. Then the shell runs the
command, in which {name} and {port} are replaced; everything else, ${HOME} for example, is left to the shell. After
successful health checks, HAProxy sends work to the worker again, and it is the next worker's turn.

A worker is drained only while another one is up, so that clients can be served. If the command fails, if a worker does
not come up again, or if the script is interrupted, the script sets the worker ready again, does not restart the
remaining workers, and exits with a status other than 0.
"""

import argparse
import csv
import signal
import socket
import subprocess
import sys
import time
from functools import partial

POLL_INTERVAL = 0.05  # seconds between two queries of HAProxy's statistics
ANSWER_TIMEOUT = 10  # seconds that HAProxy has to answer a command
RELEASE_TIMEOUT = 5  # seconds of attempts to set a worker ready again, in case HAProxy is just being reloaded
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # SIGHUP: the terminal or the SSH session was closed
received = []  # signals; their handler raises nothing, because a worker may have to be set ready before the script ends


class Refused(Exception):
    """Raised when HAProxy refuses a command, or when a worker cannot be restarted or does not come up again."""


class Interrupted(Exception):
    """Raised after one of `SIGNALS`, at a moment when the script waits."""


def pause():
    """Wait a moment, unless the script has received a signal."""
    if received:
        raise Interrupted
    time.sleep(POLL_INTERVAL)


class Admin:
    """HAProxy's runtime socket, which accepts one command on each connection."""

    def __init__(self, path):
        self.path = path

    def send(self, command):
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(ANSWER_TIMEOUT)
                sock.connect(self.path)
                sock.sendall(command.encode() + b'\n')
                answer = b''.join(iter(lambda: sock.recv(65536), b'')).decode().strip()
        except OSError as exc:
            raise ConnectionError(f'HAProxy does not answer at {self.path}: {exc}. Is this its `stats socket`?')
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

    def wait(self, name, seconds, reached, check=lambda: None):
        """Wait until `reached(row)` is true in every backend. Return False if it is not true after `seconds`."""
        end = time.monotonic() + seconds
        while not all(reached(row) for row in self.servers(name)):
            if time.monotonic() > end:
                return False
            check()
            pause()
        return True


def is_idle(row):
    return row['scur'] == row['qcur'] == '0'


def is_up(row):
    return row['status'] == 'UP'


def require_another(admin, name, backends):
    """Raise `Refused` unless each of these backends has another server that is up."""
    for backend in backends:
        others = [row for row in admin.servers() if row['pxname'] == backend and row['svname'] != name]
        if not any(map(is_up, others)):
            found = ', '.join(f'{row["svname"]} is {row["status"]}' for row in others) or 'it has no other server'
            raise Refused(
                f'{name} is the last healthy server of backend {backend} ({found}), so it was not restarted. '
                f'Start another server of this backend, wait until it is UP, and run this script again'
            )


def release(admin, name, discard_health):
    """Let HAProxy send work to a server again, after its next health checks if `discard_health` is true."""
    end = time.monotonic() + RELEASE_TIMEOUT
    while True:
        try:
            if discard_health:
                admin.set(name, 'health down')
            return admin.set(name, 'state ready')
        except (OSError, Refused) as exc:
            if time.monotonic() > end:
                raise Refused(
                    f'{name} may still be drained, because it could not be set ready again. {exc}. For each backend, '
                    f"run: echo 'set server BACKEND/{name} state ready' | socat - {admin.path}"
                )
        time.sleep(POLL_INTERVAL)


def restart_one(admin, name, restart, drain=30, start=30):
    """Restart one worker and return whether it is up again. `restart()` may return before the new process listens.

    Raises `Refused` if the worker is the last healthy one. However the restart ends, the worker is set ready again.
    """
    rows = admin.servers(name)
    if any(row['status'] == 'no check' for row in rows):
        raise Refused(f'{name} has no health checks, which show that it is up again. Add `check` to its server line')
    check = partial(require_another, admin, name, [row['pxname'] for row in rows if row['status'].startswith('UP')])
    check()
    restarting = False
    try:
        admin.set(name, 'state drain')
        # Connections that are left after the timeout end during the worker's own drain.
        admin.wait(name, drain, is_idle, check)
        restarting = True
        restart()
    finally:
        # The health checks of the old process say nothing about the new one, which gets no work before its own succeed.
        release(admin, name, discard_health=restarting)
    return admin.wait(name, start, is_up)


def run_command(command, name, port):
    # Not str.format, which would replace the braces of ${HOME}, too.
    command = command.replace('{name}', name).replace('{port}', port)
    pause()
    with subprocess.Popen(command, shell=True) as process:
        try:
            while process.poll() is None:
                pause()
        except Interrupted:
            process.terminate()
            raise
    if process.returncode:
        raise Refused(
            f'the command for {name} failed with status {process.returncode}: {command}. {name} gets work again when '
            f'its health checks succeed. The remaining workers were not restarted; run the script again for them'
        )


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('socket', help="HAProxy's `stats socket`, of level admin")
    options.add_argument('command', help='a shell command that restarts one worker; {name} and {port} are filled in')
    options.add_argument('names', nargs='*', help='servers to restart (default: all, in configuration order)')
    options.add_argument('--drain', type=float, default=30, help='seconds to wait for the last requests (default 30)')
    options.add_argument('--start', type=float, default=30, help='seconds to wait for good health checks (default 30)')
    args = options.parse_args()
    admin = Admin(args.socket)
    for signum in SIGNALS:
        signal.signal(signum, lambda signum, frame: received.append(signum))
    ports = {row['svname']: row['addr'].rpartition(':')[2] for row in admin.servers(*args.names)}
    if unknown := [name for name in args.names if name not in ports]:
        known = ', '.join(dict.fromkeys(row['svname'] for row in admin.servers()))
        raise Refused(f'HAProxy has no server {", ".join(unknown)}; it has {known}')
    for name, port in ports.items():
        print(f'{name}, port {port}', flush=True)
        restart = partial(run_command, args.command, name, port)
        if not restart_one(admin, name, restart, args.drain, args.start):
            raise Refused(
                f'{name} was not up again after {args.start:g} s, so the remaining workers were not restarted. '
                f'Look at the log of {name}, and run the script again when it is up'
            )


if __name__ == '__main__':
    try:
        main()
    except (OSError, Refused) as exc:
        sys.exit(f'{exc}.')
    except Interrupted:
        print('Interrupted. No server is left drained; run the script again for the remaining ones.', file=sys.stderr)
        sys.exit(128 + received[0])
