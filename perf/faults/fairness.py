"""One client sends as fast as it can, while a thousand others send pings and wait for the echoes (M8).

The first client, the firehose, waits for nothing but the kernel. The other clients each send ten pings a second in the
first part; in the second part, they send the next ping as soon as the last was echoed.
"""

import contextlib
import selectors
import time
from collections import deque

import reactor
from perf.common.arithmetic import quantile
from perf.common.machine import ahead_of_others, cores, on_core, raise_descriptor_limit
from perf.loads.sockets import connect, connections

from .case import Case, Goal
from .child import Child
from .programs import Looks

CLIENTS = 1_000
SECONDS = 10.0  # seconds for each of the two parts
PAUSE = 0.1  # seconds from an echo to the next ping
PIECE = b'f' * (256 << 10)


class Firehose(Case):
    name = 'M8'
    title = 'one client that sends without a pause, and 1,000 that send pings'
    seconds = 25
    goals = (
        Goal(
            'the p99 of a ping is at most 50 ms when each client sends ten a second',
            lambda m: m['paced']['p99_ms'] <= 50,
            timed=True,
        ),
        Goal(
            'the p99 is at most 50 ms when clients ping without a pause',
            lambda m: m['flat_out']['p99_ms'] <= 50,
            timed=True,
        ),
        Goal('every client is answered', lambda m: m['paced']['fewest_answers'] and m['flat_out']['fewest_answers']),
    )

    def measure(self, run):
        count, seconds = run.count(CLIENTS, 50), run.seconds(SECONDS, 0.4)
        found = {'clients': count}
        server_core, load_core = cores()
        with contextlib.ExitStack() as stack:

            def start(target, core, priority=1, **more):
                with on_core(core):
                    return stack.enter_context(Child(target, prefix=ahead_of_others(priority), **more))

            port = start('fairness:serve', server_core).receive()
            clients = start('fairness:ping_pong', load_core, 2, port=port)
            firehose = start('fairness:pour', load_core, port=port)
            for done, (way, pause) in enumerate({'paced': PAUSE, 'flat_out': 0}.items()):
                run.progress(done, 2, way)
                firehose.send('pour', seconds=seconds)
                found[way] = clients.ask('ask', count=count, seconds=seconds, pause=pause)
                found[way]['firehose_mb_per_s'] = firehose.receive() / seconds / 1e6
        return found


def serve(control):
    """Run a server that echoes short messages and drops long ones."""

    def on_data(conn, data):
        if len(data) <= 16:
            conn.write(data)

    def main(r):
        raise_descriptor_limit()
        control.attach(r, Looks(r).commands())
        control.send(r.listen_tcp('127.0.0.1', 0, on_data).address[1])

    reactor.run(main)


class Pinging:
    """The clients that send pings."""

    def __init__(self, port):
        self.port = port

    def ask(self, count, seconds, pause):
        with connections(self.port, count) as socks, selectors.DefaultSelector() as selector:
            for sock in socks:
                selector.register(sock, selectors.EVENT_READ)
            times, answers = self.exchange(selector, socks, time.perf_counter() + seconds, pause)
        times.sort()
        found = {name: quantile(times, share) * 1000 for name, share in (('p50_ms', 0.5), ('p99_ms', 0.99))}
        return {'pings': len(times), **found, 'most_ms': times[-1] * 1000, 'fewest_answers': min(answers.values())}

    def exchange(self, selector, socks, until, pause):
        """Send pings until the time `until`; return (seconds that each took, {socket: number of answers})."""
        times, answers, asked = [], dict.fromkeys(socks, 0), {}
        now = time.perf_counter()
        waiting = deque((now + pause * index / len(socks), sock) for index, sock in enumerate(socks))
        while (now := time.perf_counter()) < until:
            while waiting and waiting[0][0] <= now:
                sock = waiting.popleft()[1]
                asked[sock] = time.perf_counter()
                sock.send(b'ping')
            for key, _ in selector.select(max(0, waiting[0][0] - now) if waiting else 1):
                sock = key.fileobj
                sock.recv(16)
                now = time.perf_counter()
                times.append(now - asked[sock])
                answers[sock] += 1
                waiting.append((now + pause, sock))
        return times, answers


def ping_pong(control, port):
    raise_descriptor_limit()
    control.serve({'ask': Pinging(port).ask})


class Hose:
    """The client that sends without a pause."""

    def __init__(self, port):
        self.port = port

    def pour(self, seconds):
        """Send for `seconds`; return how many bytes the kernel accepted."""
        poured, until = 0, time.monotonic() + seconds
        with connect(self.port) as sock:
            while time.monotonic() < until:
                poured += sock.send(PIECE)
        return poured


def pour(control, port):
    control.serve({'pour': Hose(port).pour})
