"""Resources run out: memory (M14), and room in a selector (M17).

A connection that cannot be served is ended. No client receives a wrong byte, and the other clients and all later
clients are served as before.
"""

import contextlib
import gc
import os
import random
import resource
import selectors
import time

import reactor
from perf.common.server import Failed
from perf.loads.sockets import connect

from .case import Case, Goal
from .child import Child
from .held import ask_all, wait, wait_until
from .programs import Looks

HOARDERS = 60  # connections that make the server keep data
HOARD = 10_000_000  # bytes that the server keeps for each hoarder
LEAST_ROOM = 40_000_000  # bytes that the server may allocate, or a quarter of the hoarders' data if that is more
PIECE = b'hoard' + b'x' * 65531
GREEDY = b'greedy'
PATIENCE = 30  # seconds within which a client must be served or cut off
GOOD = 20  # good connections, which send data and check the echo
LONGEST = 200_000  # bytes that a good connection sends at once
BESIDE = 2.0  # seconds for which the good connections send at the same time as the hoarders
ROUNDS = 5
SELECT_ROOM = 1_024  # descriptors that `select` can watch (FD_SETSIZE)
MORE = 76  # clients above that number: 1,100 in all
LEAVE = 50  # clients that disconnect, to make room for others


class Memory(Case):
    name = 'M14'
    title = 'memory runs out (RLIMIT_AS) five times: many connections each take some of it, then one takes the rest'
    seconds = 30
    goals = (
        Goal('memory did run out', lambda m: m['memory_errors'] > 0),
        Goal('the loop survives, and serves again at once', lambda m: m['served_after'] == m['rounds']),
        Goal('no client received a wrong byte', lambda m: m['wrong'] == 0 and m['echoed'] > 0),
        Goal('on_close is called once for each connection', lambda m: m['closed'] == m['opened']),
        Goal('no descriptor is left', lambda m: m['descriptors_left'] == 0),
        Goal('no object is left, with the garbage collector off', lambda m: m['objects_left'] <= 0),
    )

    def measure(self, run):
        rounds, hoarders, beside = run.count(ROUNDS, 1), run.count(HOARDERS, 16), run.seconds(BESIDE, 0.5)
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Child('shortage:hoard', room=max(LEAST_ROOM, hoarders * HOARD // 4)))
            port = server.receive()
            good = stack.enter_context(Child('shortage:be_good', port=port))
            self.one_round(server, good, port, hoarders, beside)  # warm-up: the first log lines create objects
            before = self.look(server)
            found = {'rounds': rounds, 'served_after': 0, 'echoed': 0, 'wrong': 0, 'good_cut_off': 0}
            for index in range(rounds):
                for name, value in self.one_round(server, good, port, hoarders, beside).items():
                    found[name] += value
                run.progress(index + 1, rounds, 'memory ran out')
            after = self.look(server)
            found |= {name: after[name] for name in ('memory_errors', 'opened', 'closed', 'most_kept')}
            return found | {f'{name}_left': after[name] - before[name] for name in ('descriptors', 'objects')}

    def one_round(self, server, good, port, hoarders, seconds):
        good.send('go', seconds=seconds)
        self.send_hoards(port, hoarders)
        beside = good.receive()
        with connect(port) as sock:
            sock.settimeout(PATIENCE)
            sock.send(GREEDY)
            with contextlib.suppress(ConnectionError):
                sock.recv(1)
        wait_until('all are closed', lambda: server.ask('look')['incoming'] == 0)
        with connect(port) as sock:
            sock.settimeout(10)
            sock.send(b'echo')
            beside['served_after'] = int(sock.recv(4) == b'echo')
        return beside

    def send_hoards(self, port, hoarders):
        """Connect the hoarders, and send until the server has cut them off or everything is sent."""
        with selectors.DefaultSelector() as selector:
            left = {}
            for _ in range(hoarders):
                sock = connect(port)
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_WRITE)
                left[sock] = HOARD
            until = time.monotonic() + PATIENCE
            while left and time.monotonic() < until:
                for key, _ in selector.select(1):
                    sock = key.fileobj
                    try:
                        left[sock] -= sock.send(PIECE)
                    except OSError:
                        left[sock] = 0  # the server has cut off this client
                    if left[sock] <= 0:
                        selector.unregister(sock)
                        del left[sock]
                        sock.close()
        if left:
            raise Failed(f'{len(left)} hoarders are neither served nor cut off')

    def look(self, server):
        with contextlib.suppress(Failed):
            wait_until('all are closed', lambda: server.ask('look')['incoming'] == 0)
        return {**server.ask('ends'), 'descriptors': server.descriptors(), 'objects': server.ask('objects')}


def hoard(control, room):
    """Run an echo server that keeps data beginning with `hoard`, and allocates all memory when it gets `greedy`."""
    ends = {'memory_errors': 0, 'opened': 0, 'closed': 0, 'most_kept': 0}
    kept = [0]
    gc.disable()

    def begin(conn):
        conn.data = []
        ends['opened'] += 1

    def on_data(conn, data):
        if conn.data or data.startswith(b'hoard'):
            conn.data.append(data)
            kept[0] += len(data)
            ends['most_kept'] = max(ends['most_kept'], kept[0])
        elif data == GREEDY:
            while True:  # allocate small pieces, so that no memory at all is left
                conn.data.append(bytearray(50))
        elif not conn.write(data):
            conn.pause_reading()

    def on_close(conn, exc):
        ends['closed'] += 1
        ends['memory_errors'] += isinstance(exc, MemoryError)
        kept[0] -= sum(len(piece) for piece in conn.data if type(piece) is bytes)

    def main(r):
        control.attach(r, Looks(r).commands(ends=lambda: ends))
        callbacks = {'on_connect': begin, 'on_close': on_close, 'on_drain': reactor.Stream.resume_reading}
        control.send(r.listen_tcp('127.0.0.1', 0, on_data, **callbacks).address[1])
        used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))

    reactor.run(main)


class Good:
    """Clients that send data and check the echo."""

    def __init__(self, port):
        self.port = port

    def go(self, seconds):
        socks, until = [connect(self.port) for _ in range(GOOD)], time.monotonic() + seconds
        echoed = wrong = cut_off = 0
        while time.monotonic() < until:
            for index, sock in enumerate(socks):
                sent = b'good' + random.randbytes(random.randrange(LONGEST))
                try:
                    received = exchange(sock, sent)
                except OSError:
                    received = b''
                wrong += not sent.startswith(received)
                if len(received) == len(sent):
                    echoed += 1
                else:
                    cut_off += 1
                    sock.close()
                    socks[index] = connect(self.port)
        for sock in socks:
            sock.close()
        return {'echoed': echoed, 'wrong': wrong, 'good_cut_off': cut_off}


def exchange(sock, data):
    """Send `data`, and return the bytes that came back before the connection ended."""
    sock.settimeout(PATIENCE)
    received = bytearray()
    try:
        sock.sendall(data)
        while len(received) < len(data):
            piece = sock.recv(1 << 18)
            if not piece:
                break
            received += piece
    except ConnectionError:
        pass
    return bytes(received)


def be_good(control, port):
    control.serve({'go': Good(port).go})


class SelectLimit(Case):
    name = 'M17'
    title = '1,100 clients connect to a server with a SelectSelector'
    seconds = 20
    goals = (
        Goal('as many clients are served as select can watch', lambda m: m['answered'] == m['accepted'] >= m['room']),
        Goal('the connections of the others are closed', lambda m: m['closed'] == m['clients'] - m['accepted']),
        Goal('CPU use is below 1 % when there is no room', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('at most one line a second is logged', lambda m: m['lines'] <= 1 + m['seconds']),
        Goal('freed room is used for new clients', lambda m: m['later_clients_answered'] == m['left']),
        Goal('no descriptor is left when the clients have disconnected', lambda m: m['descriptors_left'] == 0),
    )

    def measure(self, run):
        count, began = SELECT_ROOM + run.count(MORE, 4), time.monotonic()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Child('programs:serve_echo', select=True))
            port, at_start = server.receive(), server.descriptors()
            crowds = [stack.enter_context(Child('programs:crowd', port=port, count=n)) for n in (count, LEAVE)]
            crowds[0].ask('connect')
            wait_until('all clients are accepted or closed', lambda: self.seen(server) == count)
            look, cpu, since = server.ask('look'), server.cpu(), time.monotonic()
            wait(run.seconds(3, 0.5), run, 'no more room')
            share = (server.cpu() - cpu) / (time.monotonic() - since)
            found = {'clients': count, 'room': SELECT_ROOM - at_start, 'accepted': look['incoming'], 'cpu_share': share}
            found['answered'] = crowds[0].ask('ping')
            found['closed'] = crowds[0].ask('count_closed')
            found['left'] = crowds[0].ask('leave', count=LEAVE)
            wait_until(
                'connections of the departed clients are closed',
                lambda: server.ask('look')['incoming'] == look['incoming'] - LEAVE,
            )
            crowds[1].ask('connect')
            found['later_clients_answered'] = crowds[1].ask('ping')
            ask_all(crowds, 'leave')
            with contextlib.suppress(Failed):
                wait_until('all connections are closed', lambda: server.descriptors() == at_start)
            found['lines'] = server.ask('look')['lines']
            found['seconds'] = time.monotonic() - began
            return {**found, 'descriptors_left': server.descriptors() - at_start}

    def seen(self, server):
        look = server.ask('look')
        return look['accepts'] + look['accepts_refused']
