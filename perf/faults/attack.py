"""1,000 good clients, and one address that connects too fast, sends too slowly, or holds too many connections (M24).

Every client keeps its rate whatever the server does, and the times of good clients are measured from the moment
when each request was due. Parts with and without an attack alternate, so that other work on the machine affects both.
"""

import contextlib
from statistics import median

import reactor
from perf.common.arithmetic import rotated
from perf.common.machine import ahead_of_others, cores, on_core, raise_descriptor_limit
from reactor.demo.steady import SteadyLoad

from .case import Case, Goal
from .child import LATER, Child
from .programs import Looks

ROUNDS = 5
SECONDS = 8.0  # seconds for each of the four parts of a round
GOOD_CLIENTS = 1_000
GOOD_RATE = 2_000  # requests a second, of all good clients together
SOURCES = 20  # addresses that the good clients connect from
CONNECT_RATE, CONNECT_BURST = 100, 200  # limits for an address: new connections a second, and in one burst
PER_ADDRESS = 100  # limit for an address: open connections
MIN_RATE, GRACE = 50, 2  # limits for a connection: bytes a second that it must send, after GRACE seconds
TICK = 0.005  # seconds between two steps of the attacker
# For each attack: connections a second, what the attacker does with each, and the counter of the limit that stops it.
ATTACKS = {
    'too fast': (1_000, 'ask', 'refused_rate'),
    'too slow': (20, 'drip', 'ended_slow'),
    'too many': (90, 'hold', 'refused_per_address'),
}
DRIP = 0.2  # seconds between two bytes of one connection
ATTACKER = '127.0.9.9'
REQUEST = b'GET / HTTP/1.1\r\nHost: good\r\n\r\n'
REPLY = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'


class Attack(Case):
    name = 'M24'
    title = '1,000 good clients, and an address that connects too fast, sends too slowly, or holds too many connections'
    seconds = 200
    goals = (
        Goal(
            'connections above the limits for their rate and number are refused',
            lambda m: m['attacks']['too fast']['limited'] and m['attacks']['too many']['limited'],
        ),
        Goal('connections that send too slowly are closed', lambda m: m['attacks']['too slow']['limited'], timed=True),
        Goal(
            'every request of the good clients is answered',
            lambda m: not m['good']['failed'] and not any(one['failed'] for one in m['attacks'].values()),
        ),
        Goal(
            'the p99 of good clients is at most twice that without an attack (median of the rounds)',
            lambda m: all(one['median_ratio'] <= 2 for one in m['attacks'].values()),
            timed=True,
        ),
    )

    def measure(self, run):
        rounds, seconds = run.count(ROUNDS), run.seconds(SECONDS, 0.5)
        clients = run.count(GOOD_CLIENTS, 20)
        rate = GOOD_RATE * clients / GOOD_CLIENTS
        server_core, load_core = cores()
        found = {name: [] for name in (None, *ATTACKS)}
        with contextlib.ExitStack() as stack:

            def start(target, core, priority=1, **more):
                with on_core(core):
                    prefix = ahead_of_others(priority)
                    return stack.enter_context(Child(f'attack:{target}', prefix=prefix, **more))

            server = start('serve', server_core, per_address=run.count(PER_ADDRESS, 10))
            port = server.receive()
            good = start('ask', load_core, 2, port=port, clients=clients, rate=rate)
            attacker = start('attack', load_core, port=port)
            for number in range(rounds):
                for done, name in enumerate(rotated([None, *ATTACKS], number)):
                    run.progress(number * 4 + done, rounds * 4, name or 'no attack')
                    found[name].append(self.part(server, good, attacker, name, seconds))
        calm = found.pop(None)
        return {
            'rounds': rounds,
            'good': {'clients': clients, 'requests_per_s': rate, **summary(calm)},
            'attacks': {name: compared(ATTACKS[name][0], parts, calm) for name, parts in found.items()},
        }

    def part(self, server, good, attacker, name, seconds):
        """Run the good clients for `seconds` during the named attack; None means no attack."""
        before = server.ask('look')
        if name is not None:
            attacker.send('attack', name=name, seconds=seconds)
        answer = good.ask('ask', seconds=seconds)
        if name is not None:
            answer |= attacker.receive()
            after = server.ask('look')
            counter = ATTACKS[name][2]
            answer |= {'limited': after[counter] - before[counter], 'lines': after['lines'] - before['lines']}
        return answer


def summary(parts):
    p99s = [part['p99_ms'] for part in parts]
    return {'p99_ms': median(p99s), 'least_p99_ms': min(p99s), 'failed': sum(part['failed'] for part in parts)}


def compared(rate, parts, calm):
    """Summarise the rounds of one attack, each compared with the same round without an attack."""
    ratios = [part['p99_ms'] / other['p99_ms'] for part, other in zip(parts, calm, strict=True)]
    return {
        'per_s': rate,
        **summary(parts),
        **{name: sum(part[name] for part in parts) for name in ('tried', 'limited')},
        'lines': max(part['lines'] for part in parts),
        'median_ratio': median(ratios),
        'least_ratio': min(ratios),
        'most_ratio': max(ratios),
    }


def serve(control, per_address):
    """Run a server that answers each complete request."""
    raise_descriptor_limit()
    limits = reactor.Limits(
        connect_rate=(CONNECT_RATE, CONNECT_BURST), per_address=per_address, min_rate=(MIN_RATE, GRACE)
    )

    def on_data(conn, data):
        if data.endswith(b'\r\n\r\n'):
            conn.write(REPLY)

    def main(r):
        control.attach(r, Looks(r).commands())
        control.send(r.listen_tcp('127.0.0.1', 0, on_data, limits=limits).address[1])

    reactor.run(main)


class Good(SteadyLoad):
    """The good clients, which connect from several addresses."""

    def open(self):
        self.opens = getattr(self, 'opens', 0) + 1
        source = f'127.0.1.{1 + self.opens % SOURCES}', 0
        callbacks = {'on_connect': self.on_connect, 'on_close': self.on_close}
        self.r.connect_tcp(self.host, self.port, self.on_data, timeout=self.timeout, local_address=source, **callbacks)


def ask(control, port, clients, rate):
    raise_descriptor_limit()

    def main(r):
        def begin(seconds):
            def done():
                times = load.figures()['reply_time']
                control.send({'p99_ms': times['p99'] * 1e3, 'failed': load.failed})

            load = Good(r, '127.0.0.1', port, connections=clients, rate=rate, seconds=seconds, timeout=10, on_done=done)
            return LATER

        control.attach(r, {'ask': begin})

    reactor.run(main)


class Attacker:
    """Opens connections at a fixed rate from one address, whatever happens to them."""

    def __init__(self, r, control, port):
        self.r, self.control, self.port = r, control, port

    def attack(self, name, seconds):
        self.rate, self.way, _ = ATTACKS[name]
        self.tried, self.conns = 0, {}
        self.began = self.r.timers.clock()
        self.ticks = self.r.call_every(TICK, self.tick, seconds)
        return LATER

    def tick(self, seconds):
        passed = self.r.timers.clock() - self.began
        if passed >= seconds:
            self.ticks.cancel()
            for conn in list(self.conns):
                conn.abort()
            self.control.send({'tried': self.tried})
            return
        while self.tried < passed * self.rate:
            self.tried += 1
            self.r.connect_tcp(
                '127.0.0.1', self.port, self.on_data, on_connect=self.on_connect, on_close=self.on_close,
                local_address=(ATTACKER, 0),
            )  # fmt: skip

    def on_connect(self, conn):
        self.conns[conn] = None
        if self.way == 'ask':
            conn.write(REQUEST)
        elif self.way == 'drip':
            self.drip(conn)

    def drip(self, conn):
        if conn in self.conns and not conn.closed:
            conn.write(b'G')
            self.r.call_later(DRIP, self.drip, conn)

    def on_data(self, conn, data):
        conn.close()

    def on_close(self, conn, exc):
        self.conns.pop(conn, None)


def attack(control, port):
    raise_descriptor_limit()

    def main(r):
        control.attach(r, {'attack': Attacker(r, control, port).attack})

    reactor.run(main)
