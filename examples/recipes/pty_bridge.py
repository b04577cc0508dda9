"""Serve a program on a pseudo-terminal to TCP clients: each client gets a program of its own.

    $ PYTHONPATH=. python3 examples/recipes/pty_bridge.py --port 7020 bash -i
    listening on 127.0.0.1:7020

In another terminal, `socat -,rawer,escape=0x1d tcp:127.0.0.1:7020` is like sitting at the terminal. Ctrl-] ends socat.

The port gives a shell to every user of this machine, so it listens on loopback only, and it has no password.

It needs util-linux (`setsid`), which every Linux distribution installs, and no Python package. `setsid --ctty` makes
the pseudo-terminal the controlling terminal of the program, so that Ctrl-C interrupts what runs there.

When the program ends or is killed, its client gets all of its output, and then an end of file. When the client goes
away, the terminal is hung up: the program gets SIGHUP, and its exit status is printed. A client that does not read
stops the program's output (`pause_reading` of the terminal), and a program that does not read stops its client.

Measured on two cores with Linux 6.18 and Python 3.11: a key press comes back after 22 us (p99 65 us), 61 MB/s of output
arrive, and an idle bridge wakes up 0 times a second. Of 200,000 lines from a program that then killed itself with
SIGKILL, 200,000 arrived. After 20 clients that went away, no descriptor and no program was left.
"""

import argparse
import os
import signal

import reactor


class Session:
    """A client and its program, joined by a pseudo-terminal."""

    def __init__(self, conn, command):
        self.conn = conn
        ours, theirs = os.openpty()
        try:
            options = {'stdin': theirs, 'stdout': theirs, 'stderr': theirs, 'on_exit': self.on_exit}
            self.process = conn.loop.spawn(['setsid', '--ctty', *command], **options)
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)  # the program has its own copy; the last one that is closed hangs up the terminal
        self.terminal = conn.loop.open_fd(ours, self.from_terminal)
        self.terminal.on_drain = lambda _: conn.resume_reading()
        self.terminal.on_close = lambda _, exc: conn.close()  # sends the output that is waiting
        conn.on_data = self.from_client
        conn.on_drain = lambda _: self.terminal.resume_reading()
        conn.on_close = lambda _, exc: self.terminal.close()

    def from_client(self, conn, data):
        if not self.terminal.closed and not self.terminal.write(data):
            conn.pause_reading()

    def from_terminal(self, terminal, data):
        if not self.conn.closed and not self.conn.write(data):
            terminal.pause_reading()

    def on_exit(self, process, code, signum):
        how = f'exit status {code}' if signum is None else f'signal {signum} ({signal.strsignal(signum)})'
        print(f'process {process.pid} has ended: {how}', flush=True)


def main(r, port, command):
    def on_connect(conn):
        try:
            Session(conn, command)
        except OSError as exc:
            print(f'{conn.peername[0]}:{conn.peername[1]}: cannot start {command[0]}: {exc}', flush=True)
            conn.abort(exc)

    server = r.listen_tcp('127.0.0.1', port, on_connect=on_connect)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop).unref()
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7020)
    options.add_argument('command', nargs=argparse.REMAINDER, help='default: bash -i')
    given = options.parse_args()
    reactor.run(lambda r: main(r, given.port, given.command or ['bash', '-i']))
