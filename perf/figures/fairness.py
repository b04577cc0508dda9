"""One client that sends as fast as it can, and a thousand that ask and wait.

Owns M8. The rule: the firehose never waits for anything but the kernel, and every one of the others always has a question
under way, which is the most that they can ask.
"""

import contextlib
import selectors
import time

from loads.sockets import connect, connections
from measuring.child import Child
from measuring.machine import ahead_of_others, raise_descriptor_limit
from measuring.ratios import quantile

import reactor

from .figure import Figure, Goal
from .programs import Looks

CLIENTS = 1_000
SECONDS = 20.0
PIECE = b'f' * (256 << 10)


class Firehose(Figure):
    name = 'M8'
    title = 'one firehose and 1,000 ping-pong clients'
    seconds = 25
    goals = (
        Goal('p99 of a ping at most 50 ms', lambda m: m['p99_ms'] <= 50),
        Goal('every client is answered all the time', lambda m: m['fewest_answers'] > 0),
        Goal('the firehose flows', lambda m: m['firehose_mb_per_s'] > 10),
    )

    def measure(self, run):
        count, seconds = run.count(CLIENTS, 50), run.seconds(SECONDS, 1)
        with contextlib.ExitStack() as stack:
            start = lambda target, **more: stack.enter_context(Child(target, **more))  # noqa: E731
            server = start('figures.fairness:serve')
            port = server.hear()
            clients = start('figures.fairness:ping_pong', prefix=ahead_of_others(), port=port)
            firehose = start('figures.fairness:pour', port=port)
            firehose.tell('pour', seconds=seconds + 1)
            run.progress(1, 2, 'pouring')
            found = clients.ask('ask', count=count, seconds=seconds)
            poured = firehose.hear()
        return {'clients': count, **found, 'firehose_mb_per_s': poured / (seconds + 1) / 1e6}


def serve(control):
    """Short messages come back, long ones are dropped."""

    def on_data(conn, data):
        if len(data) <= 16:
            conn.write(data)

    def main(r):
        raise_descriptor_limit()
        control.attach(r, Looks(r).commands())
        control.say(r.listen_tcp('127.0.0.1', 0, on_data).address[1])

    reactor.run(main)


class Pinging:
    def __init__(self, port):
        self.port = port

    def ask(self, count, seconds):
        times, answers = [], {}
        with connections(self.port, count) as socks, selectors.DefaultSelector() as selector:
            for sock in socks:
                selector.register(sock, selectors.EVENT_READ)
                answers[sock] = 0
            until = time.perf_counter() + seconds
            asked = {}
            for sock in socks:
                asked[sock] = time.perf_counter()
                sock.send(b'ping')
            while time.perf_counter() < until:
                for key, _ in selector.select(1):
                    sock = key.fileobj
                    sock.recv(16)
                    now = time.perf_counter()
                    times.append(now - asked[sock])
                    answers[sock] += 1
                    asked[sock] = now
                    sock.send(b'ping')
        times.sort()
        p50, p99 = (quantile(times, share) * 1000 for share in (0.5, 0.99))
        fewest = min(answers.values())
        return {
            'pings': len(times),
            'p50_ms': p50,
            'p99_ms': p99,
            'most_ms': times[-1] * 1000,
            'fewest_answers': fewest,
        }


def ping_pong(control, port):
    raise_descriptor_limit()
    control.serve({'ask': Pinging(port).ask})


class Hose:
    def __init__(self, port):
        self.port = port

    def pour(self, seconds):
        """How many bytes the kernel took in so many seconds."""
        poured, until = 0, time.monotonic() + seconds
        with connect(self.port) as sock:
            while time.monotonic() < until:
                poured += sock.send(PIECE)
        return poured


def pour(control, port):
    control.serve({'pour': Hose(port).pour})
