"""Descriptors that a selector reports again and again although the program can do nothing about them (M26).

Each state is created with real sockets and lasts as long as its process, and its cost is measured. Only the failing
`accept` is simulated in Python, because the kernel cannot be made to refuse it permanently.
"""

import errno
import os
import socket
import tempfile
import time

import reactor

from .case import Case, Goal
from .child import Child
from .held import wait
from .programs import Looks

SECONDS = 10.0  # seconds for which each state is measured
SETTLE = 1.0  # seconds before the measurement, in which the pauses of a parked handle grow from 10 to 250 ms
IP_RECVERR = 11
SO_TIMESTAMPING, TX_SOFTWARE, SOFTWARE, OPT_ID = 37, 2, 16, 128


class Spins(Case):
    name = 'M26'
    title = 'descriptors that a selector keeps reporting although the program can do nothing about them'
    seconds = 90
    goals = (
        Goal(
            'CPU use is below 1 % in each state',
            lambda m: all(one['cpu_share'] < 0.01 for one in m['states'].values()),
            timed=True,
        ),
        Goal('each state that costs turns is counted', lambda m: all(one['counted'] for one in costly(m))),
        Goal('each state that costs turns is logged once', lambda m: all(one['lines'] == 1 for one in costly(m))),
        Goal('a receiver that is not full gets its datagram', lambda m: m['states']['full receiver']['others_served']),
    )

    def measure(self, run):
        states = {}
        for name in STATES:
            with Child('spins:serve', state=name) as child:
                child.receive()
                wait(SETTLE, run, name)  # not scaled, because the pauses always take this long to grow
                cpu, began = child.cpu(), time.monotonic()
                wait(run.seconds(SECONDS, 1), run, name)
                share = (child.cpu() - cpu) / (time.monotonic() - began)
                look = child.ask('look')
                states[name] = {
                    'cpu_share': share,
                    'counted': look['stalls'] + look['accept_pauses'],
                    'lines': look['lines'],
                    'others_served': child.ask('served'),
                }
        return {'states': states}


def costly(found):
    """Return the figures of the states that cost turns until the reactor notices them."""
    return [one for name, one in found['states'].items() if name != PREVENTED]


def serve(control, state):
    """Create a state and keep it until the process ends."""

    def main(r):
        looks = Looks(r)
        kept = STATES[state](r)
        control.attach(r, {**looks.commands(), 'served': lambda: bool(kept[-1]())})
        control.send('ready')

    reactor.run(main)


def always():
    return True


def refused_accept(r):
    class Refusing(socket.socket):
        def accept(self):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    sock = Refusing()
    sock.bind(('127.0.0.1', 0))
    server = r.listen_tcp('127.0.0.1', 0, sock=sock)
    return server, socket.create_connection(server.address), always


def full_receiver(r):
    folder = tempfile.TemporaryDirectory()
    socks = {}
    for name in ('ours', 'full', 'other'):
        socks[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        socks[name].bind(f'{folder.name}/{name}')
    sender = r.bind_udp(None, 0, sock=socks['ours'])
    for _ in range(1000):
        sender.send(b'x', f'{folder.name}/full')
    sender.send(b'x', f'{folder.name}/other')
    socks['other'].settimeout(1)

    def served():
        return socks['other'].recv(10) == b'x'

    return folder, socks, served


def refused_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()


def errors_of_datagrams(r):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(('127.0.0.1', 0))
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    ours = r.bind_udp(None, 0, sock=sock)
    ours.send(b'x', refused_port())
    return ours, always


def timestamps_of_a_connection(r):
    listener = socket.create_server(('127.0.0.1', 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID)
    conn = r.adopt(ours)
    conn.write(b'x')
    return listener, theirs, conn, always


def errors_of_a_watched_descriptor(r):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    sock.sendto(b'x', refused_port())

    def on_ready(handle, event):
        try:
            sock.recv(100)
        except OSError:
            pass

    return r.watch_fd(sock, reactor.READ, on_ready), always


def datagrams_shut_down(r):
    sock = r.bind_udp('127.0.0.1', 0)
    try:
        sock.sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # shutdown() raises ENOTCONN, but takes effect
    return sock, always


def number_of_a_copy(r):
    ours, theirs = socket.socketpair()
    lost = r.adopt(ours)
    copy = os.dup(ours.fileno())
    os.close(ours.fileno())
    theirs.send(b'x')
    return lost, theirs, copy, r.bind_udp('127.0.0.1', 0), always


# The handle whose descriptor was closed ends with an error before the next poll, and the selector is replaced then.
PREVENTED = 'number closed while a copy lives'
STATES = {
    'refused accept': refused_accept,
    'full receiver': full_receiver,
    'error queue of a datagram socket': errors_of_datagrams,
    'timestamps of a connection': timestamps_of_a_connection,
    'error queue of a watched descriptor': errors_of_a_watched_descriptor,
    'datagram socket shut down by other code': datagrams_shut_down,
    PREVENTED: number_of_a_copy,
}
