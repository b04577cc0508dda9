"""TLS: the memory that a connection keeps (M27), and good peers among peers that misbehave (M28, M29).

The server is a separate process, and its memory is read from the operating system. Rounds with and without
misbehaving peers alternate, so that other work on the machine affects both. The misbehaving peers come from the
tests (`hostile_tls.py`); they send key updates through the OpenSSL library that Python is linked with.
"""

import contextlib
import random
import socket
import ssl
import time
from statistics import median

import reactor
from perf.common.arithmetic import rotated
from perf.common.machine import ahead_of_others, cores, on_core, raise_descriptor_limit
from reactor.demo.steady import SteadyLoad
from tests.helpers import hostile_tls

from .attack import REPLY
from .case import Case, Goal
from .child import LATER, Child
from .held import wait
from .network.transfer import context
from .programs import Looks

CONNECTIONS = 1_000
SIZE = 1 << 20  # bytes of an answer, and of an upload
REST = 5.0  # seconds without traffic before memory is measured
MOST_KEPT = 8192  # bytes of memory by which a connection may exceed one that was always idle
ROUNDS = 5
SECONDS = 6.0  # seconds for each part of a round
GOOD_CLIENTS, GOOD_RATE = 100, 1_000  # the rate is in requests a second, for all good clients together
FLOODS = 10  # clients that send key updates and nothing else
FLOOD_RATE = 2_000_000  # the most bytes a second that each flooding client sends
UPDATES_AT_ONCE = 200
MEMBERS, MISBEHAVING = 50, 10
MINUTE = 60.0
LINE_EVERY = 1.0  # seconds between two lines from a member


class MemoryAfterTransfer(Case):
    name = 'M27'
    title = '1,000 TLS connections, after an answer and after an upload of 1 MiB each'
    seconds = 90
    goals = (
        Goal(
            'after 5 s of rest, a connection takes at most 8 KiB more than one that was always idle',
            lambda m: m['connections'] < 500 or max(m['after_answer'], m['after_upload']) <= MOST_KEPT,
        ),
        Goal('all bytes were transferred', lambda m: m['carried'] == 2 * m['connections'] * SIZE),
    )

    def measure(self, run):
        count = run.count(CONNECTIONS, 20)
        rest = run.seconds(REST, 0.2)
        found = {'connections': count, 'carried': 0}
        for kind in 'answer', 'upload':
            with Child('tls_peers:serve_mebibytes') as server, Child('tls_peers:ask_mebibytes') as load:
                load.ask('connect', port=server.receive(), count=20)
                load.ask(kind)  # warm-up: allocate the memory that the process needs only once
                empty = server.memory()
                load.ask('connect', port=server.ask('port'), count=count)
                wait(rest, run, 'idle')
                idle = server.memory()
                found['carried'] += load.ask(kind, first=20)
                wait(rest, run, f'after an {kind}')
                found[f'after_{kind}'] = round((server.memory() - idle) / count)
                found['idle'] = round((idle - empty) / count)
        return found


def serve_mebibytes(control):
    """Run a server that answers `?` with 1 MiB of data, and answers 1 MiB of data with `!`."""
    raise_descriptor_limit()

    def on_data(conn, data):
        if data == b'?':
            conn.write(bytes(SIZE))
            return
        conn.data = (conn.data or 0) + len(data)
        if conn.data == SIZE:
            conn.data = None
            conn.write(b'!')

    def main(r):
        server = r.listen_tcp('127.0.0.1', 0, on_data, ssl=context('listen'))
        control.attach(r, {'port': lambda: server.address[1]})
        control.send(server.address[1])

    reactor.run(main)


def ask_mebibytes(control):
    raise_descriptor_limit()
    secure, socks = context('connect'), []

    def connect(port, count):
        for _ in range(count):
            socks.append(secure.wrap_socket(socket.create_connection(('127.0.0.1', port))))
        return len(socks)

    def answer(first=0):
        for sock in socks[first:]:
            sock.sendall(b'?')
            left = SIZE
            while left:
                left -= len(sock.recv(65536))
        return SIZE * len(socks[first:])

    def upload(first=0):
        for sock in socks[first:]:
            sock.sendall(bytes(SIZE))
            assert sock.recv(1) == b'!'
        return SIZE * len(socks[first:])

    control.serve({'connect': connect, 'answer': answer, 'upload': upload})


class Keys(Case):
    name = 'M28'
    title = '100 good clients, and 10 that send nothing but key updates and reconnect when they are cut off'
    seconds = 100
    goals = (
        Goal('clients that send only key updates are cut off', lambda m: m['limited']['cut_off']),
        Goal('without the limit, no client is cut off', lambda m: not m['unlimited']['cut_off']),
        Goal(
            'every request of the good clients is answered',
            lambda m: not (m['calm']['failed'] or m['limited']['failed'] or m['unlimited']['failed']),
        ),
        Goal(
            'with and without the limit, their p99 is at most twice that without the flood (median of the rounds)',
            lambda m: max(m['limited']['median_ratio'], m['unlimited']['median_ratio']) <= 2,
            timed=True,
        ),
    )

    def missing(self):
        return super().missing() or hostile_tls.ENGINE.missing or None

    def measure(self, run):
        # At least 2 s for each part, because on a busy machine it can take that long to cut off a client.
        rounds, seconds = run.count(ROUNDS), run.seconds(SECONDS, 2)
        clients = run.count(GOOD_CLIENTS, 10)
        server_core, load_core = cores()
        found = {'calm': [], 'limited': [], 'unlimited': []}
        with contextlib.ExitStack() as stack:

            def start(target, core, prefix=(), **more):
                with on_core(core):
                    return stack.enter_context(Child(f'tls_peers:{target}', prefix=prefix, **more))

            # Only processes that use little CPU get real-time priority: if one took a whole core, the kernel would stop
            # all real-time processes on that core for 50 ms in each second (sched_rt_runtime_us).
            server = start('serve_http', server_core)
            ports = server.receive()
            options = {'clients': clients, 'rate': GOOD_RATE * clients / GOOD_CLIENTS, 'prefix': ahead_of_others()}
            good = {name: start('ask_http', load_core, port=port, **options) for name, port in ports.items()}
            flood = start('flood', load_core, clients=FLOODS)
            for number in range(rounds):
                for done, name in enumerate(rotated(list(found), number)):
                    run.progress(number * 3 + done, rounds * 3, name)
                    port = 'unlimited' if name == 'unlimited' else 'limited'
                    if name != 'calm':
                        flood.ask('begin', port=ports[port])
                    part = good[port].ask('ask', seconds=seconds)
                    if name != 'calm':
                        part |= flood.ask('end')
                    found[name].append(part)
        return {'rounds': rounds, 'clients': clients, **summary(found)}


def summary(found):
    """Return the figures of each part; ratios compare them with the calm part of the same round."""
    calm = [part['p99_ms'] for part in found['calm']]
    figures = {}
    for name, parts in found.items():
        figures[name] = {
            'p99_ms': median(part['p99_ms'] for part in parts),
            'failed': sum(part['failed'] for part in parts),
        }
        if name != 'calm':
            ratios = [part['p99_ms'] / other for part, other in zip(parts, calm, strict=True)]
            figures[name] |= {'median_ratio': median(ratios), 'least_ratio': min(ratios), 'most_ratio': max(ratios)}
            figures[name] |= {key: sum(part[key] for part in parts) for key in ('cut_off', 'bytes')}
    return figures


def serve_http(control):
    """Run two listeners, with and without the limit on records without data; send their ports to the parent."""
    raise_descriptor_limit()

    def on_data(conn, data):
        conn.write(REPLY)

    def main(r):
        secure = context('listen')
        ports = {}
        for name, limit in (('limited', 32), ('unlimited', None)):
            server = r.listen_tcp('127.0.0.1', 0, on_data, ssl=secure, max_empty_records=limit)
            ports[name] = server.address[1]
        control.attach(r, Looks(r).commands())
        control.send(ports)

    reactor.run(main)


class Good(SteadyLoad):
    """The good clients, which use TLS."""

    secure = None

    def open(self):
        callbacks = {'on_connect': self.on_connect, 'on_close': self.on_close, 'ssl': self.secure}
        options = {'server_hostname': 'localhost', 'timeout': self.timeout}
        self.r.connect_tcp(self.host, self.port, self.on_data, **callbacks, **options)


def ask_http(control, port, clients, rate):
    raise_descriptor_limit()
    Good.secure = context('connect')

    def main(r):
        def ask(seconds):
            def done():
                times = load.figures()['reply_time']
                control.send({'p99_ms': times['p99'] * 1e3, 'failed': load.failed})

            load = Good(r, '127.0.0.1', port, connections=clients, rate=rate, seconds=seconds, timeout=10, on_done=done)
            return LATER

        control.attach(r, {'ask': ask})

    reactor.run(main)


class Flood:
    """Clients that send key updates as fast as the server reads them, up to FLOOD_RATE, and reconnect if cut off."""

    def __init__(self, r, clients):
        self.r, self.clients = r, clients
        self.secure = context('connect')
        self.going = False
        self.conns = set()

    def begin(self, port):
        self.port, self.going, self.cut_off, self.bytes = port, True, 0, 0
        for _ in range(self.clients):
            self.open()
        return True

    def end(self):
        self.going = False
        for conn in list(self.conns):
            conn.abort()
        return {'cut_off': self.cut_off, 'bytes': self.bytes}

    def open(self):
        peer = hostile_tls.Peer(self.secure, False, random.Random(0))
        callbacks = {'on_connect': peer.join, 'on_close': self.on_close}
        self.conns.add(self.r.connect_tcp('127.0.0.1', self.port, self.on_data, **callbacks))

    def on_data(self, conn, data):
        peer = conn.data
        was_ready = peer.ready
        peer.received(data)
        if peer.ready and not was_ready:
            peer.began, peer.sent = time.monotonic(), 0
            self.send(conn)

    def send(self, conn):
        if conn.closed:
            return
        peer = conn.data
        early = peer.sent / FLOOD_RATE - (time.monotonic() - peer.began)
        if early > 0:
            self.r.call_later(early, self.send, conn)
            return
        for _ in range(UPDATES_AT_ONCE):
            hostile_tls.ENGINE.update_keys(peer.tls, False)
        data = peer._outgoing.read()
        peer.sent += len(data)
        self.bytes += len(data)
        conn.write(data, self.send)

    def on_close(self, conn, exc):
        self.conns.discard(conn)
        if self.going:
            self.cut_off += 1
            self.open()


def flood(control, clients):
    def main(r):
        keys = Flood(r, clients)
        control.attach(r, {'begin': keys.begin, 'end': keys.end})

    reactor.run(main)


class Chat(Case):
    name = 'M29'
    title = 'a chat room of 50 TLS clients for a minute; 10 of them misbehave at random'
    seconds = 75
    goals = (
        Goal('none of the 40 good clients is disconnected', lambda m: not m['aborted']),
        Goal('each good client received every line that good clients sent', lambda m: m['missed'] == 0),
        Goal('misbehaving clients were cut off, and reconnected', lambda m: m['ended']),
        Goal('nothing is logged', lambda m: not m['lines']),
    )

    def missing(self):
        return super().missing() or hostile_tls.ENGINE.missing or None

    def measure(self, run):
        seconds = run.seconds(MINUTE, 3)
        with Child('tls_peers:serve_chat') as server, Child('tls_peers:chat') as members:
            found = members.ask('chat', ports=server.receive(), seconds=seconds, patience=seconds + 60)
            return {**found, 'lines': server.ask('look')['lines']}


def serve_chat(control):
    """Run a chat room that sends each line to all members, with listeners for TLS 1.2 and 1.3."""
    room = set()

    def on_data(conn, data):
        for member in list(room):
            member.write(data)

    def on_close(conn, exc):
        room.discard(conn)

    def main(r):
        control.attach(r, Looks(r).commands())
        ports = []
        for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
            secure = context('listen')
            secure.maximum_version = version
            secure.options |= hostile_tls.ALLOW_CLIENT_RENEGOTIATION
            server = r.listen_tcp('127.0.0.1', 0, on_data, on_connect=room.add, on_close=on_close, ssl=secure)
            ports.append(server.address[1])
        control.send(ports)

    reactor.run(main)


class Members:
    """The members of the room: some are good, others misbehave."""

    def __init__(self, r, control):
        self.r, self.control = r, control
        self.random = random.Random(0)
        self.secure = context('connect')

    def chat(self, ports, seconds):
        self.ports, self.going = ports, True
        self.good, self.received, self.sent = [], {}, 0
        self.aborted, self.acts, self.ended = [], 0, 0
        for number in range(MEMBERS - MISBEHAVING):
            callbacks = {'on_connect': self.on_connect, 'on_close': self.on_close}
            options = {'ssl': self.secure, 'server_hostname': 'localhost'}
            port = ports[number % len(ports)]
            self.r.connect_tcp('127.0.0.1', port, self.on_data, **callbacks, **options)
        for _ in range(MISBEHAVING):
            self.join()
        self.r.call_later(seconds, self.stop)
        return LATER

    def on_connect(self, conn):
        self.good.append(conn)
        self.received[conn] = 0
        if len(self.good) == MEMBERS - MISBEHAVING:
            for one in self.good:
                self.r.call_later(self.random.random() * LINE_EVERY, self.talk, one)

    def talk(self, conn):
        if self.going and not conn.closed:
            self.sent += 1
            conn.write(b'$')
            self.r.call_later(LINE_EVERY, self.talk, conn)

    def on_data(self, conn, data):
        self.received[conn] += data.count(b'$')

    def on_close(self, conn, exc):
        if self.going or exc is not None:
            self.aborted.append(repr(exc))

    def join(self):
        """Connect a member that soon misbehaves."""
        peer = hostile_tls.Peer(self.secure, False, random.Random(self.random.getrandbits(64)))
        self.r.connect_tcp(
            '127.0.0.1', self.random.choice(self.ports), on_connect=peer.join, **hostile_tls.peer_callbacks(self.gone)
        )
        self.r.call_later(self.random.random() * 2, self.act, peer)

    def act(self, peer):
        acts = [act for act in hostile_tls.ACTS if act not in ('garbage', 'tiny')]
        if self.going and peer.conn is not None and not peer.conn.closed:
            self.acts += 1
            peer.do(self.random.choice(acts))
            self.r.call_later(self.random.random() * 2, self.act, peer)

    def gone(self, conn):
        self.ended += 1
        if self.going:
            self.r.call_later(0.05, self.join)

    def stop(self):
        self.going = False
        self.r.call_later(1, self.report)

    def report(self):
        missed = sum(self.sent - received for received in self.received.values())
        counts = {'good': len(self.good), 'sent': self.sent, 'missed': missed, 'aborted': self.aborted[:5]}
        self.control.send({**counts, 'acts': self.acts, 'ended': self.ended})


def chat(control):
    def main(r):
        control.attach(r, {'chat': Members(r, control).chat})

    reactor.run(main)
