"""Idle connections: as many as a process may have (M1), in two processes (M2), and more than a process may have (M3).

Clients run in separate processes, because their descriptor limit is the same as that of the server. They connect
from many addresses, because one address has too few ports.
"""

import contextlib
import resource
import time

from perf.common.server import Failed

from .case import Case, Goal
from .child import Child

SPARE = 500  # descriptors that clients leave free
STEP = 500  # connections opened, or pinged, between two updates of the progress line
FIRST = 200  # connections that are open before memory is first measured
WAIT = 600.0  # seconds without traffic
SETTLE = 60  # seconds within which an expected change must happen; enough for a busy machine


def limit():
    """Return the largest descriptor limit that this process may set."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def open_all(run, clients, count, text):
    """Open `count` connections in each process of clients, STEP at a time."""
    opened = 0
    while opened < count:
        step = min(STEP, count - opened)
        for client in clients:
            client.send('open', count=step)
        for client in clients:
            client.receive()
        opened += step
        run.progress(opened, count, text)


def ping_all(run, client, count, text='answered'):
    """Ping `count` connections; return (how many answered, the longest time in milliseconds)."""
    answered, longest = 0, 0.0
    for first in range(0, count, STEP):
        found = client.ask('ping', first=first, count=STEP)
        answered += found['answered']
        longest = max(longest, found['longest_ms'])
        run.progress(first, count, text)
    return answered, longest


def wait(seconds, run, text):
    """Wait for `seconds`, and show the progress."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        run.progress(passed, seconds, text)
        time.sleep(min(1, seconds - passed))


def wait_until(what, look, seconds=SETTLE):
    """Wait until `look()` is true; return how many seconds that took.

    Raise `Failed` when it takes longer than `seconds`.
    """
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise Failed(f'not within {seconds:g} s: {what}')
        time.sleep(0.02)
    return time.monotonic() - began


def ask_all(children, do):
    """Send all children the same command at once; return their answers."""
    for child in children:
        child.send(do)
    return [child.receive() for child in children]


class Idle(Case):
    name = 'M1'
    title = 'one process holds idle connections for 10 minutes'
    seconds = 660
    goals = (
        Goal('19,500 connections are open at once (the descriptor limit less 500)', lambda m: m['held'] == m['asked']),
        Goal('each connection answers a ping after 10 minutes', lambda m: m['answered'] == m['asked']),
        Goal('a connection takes at most 450 bytes of RSS', lambda m: m['bytes_each'] <= 450 or m['asked'] < 5_000),
        Goal('CPU use is below 1 % while the connections are idle', lambda m: m['cpu_share'] < 0.01, timed=True),
    )

    def measure(self, run):
        count = run.count(limit() - SPARE, FIRST + 20)
        with Child('programs:serve_echo') as server:
            port = server.receive()
            with Child('programs:hold', port=port) as clients:
                open_all(run, [clients], FIRST, 'opened')
                clients.ask('ping')
                before = server.memory()
                open_all(run, [clients], count - FIRST, 'opened')
                wait_until('all are accepted', lambda: server.ask('look')['incoming'] == count)
                each = (server.memory() - before) / (count - FIRST)
                held, cpu, began = server.ask('look')['incoming'], server.cpu(), time.monotonic()
                wait(run.seconds(WAIT, 0.5), run, f'{count:,} idle')
                share = (server.cpu() - cpu) / (time.monotonic() - began)
                answered, longest = ping_all(run, clients, count)
        return {
            'asked': count,
            'held': held,
            'answered': answered,
            'bytes_each': round(each),
            'cpu_share': share,
            'longest_ping_ms': longest,
        }


class TwoWorkers(Case):
    name = 'M2'
    title = 'two workers of serve.run hold idle connections on one port'
    seconds = 60
    goals = (
        Goal('39,000 connections are open at once', lambda m: m['held'] == m['asked']),
        Goal('each connection answers a ping', lambda m: m['answered'] == m['asked']),
        Goal(
            'each worker has 45 to 55 % of the connections', lambda m: m['asked'] < 2_000 or 0.45 <= m['share'] <= 0.55
        ),
    )

    def measure(self, run):
        each = run.count(limit() - SPARE, 20)
        with contextlib.ExitStack() as stack:
            start = lambda target, **arguments: stack.enter_context(Child(target, **arguments))  # noqa: E731
            server = start('serving:serve_echo', workers=2)
            port = server.receive()
            wait_until('both workers serve', lambda: len(server.ask('pids')) == 2)
            clients = [start('programs:hold', port=port) for _ in range(2)]
            open_all(run, clients, each, 'opened by each process')

            def incoming():
                return [stats['incoming'] for stats in server.ask('stats').values()]

            with contextlib.suppress(Failed):
                wait_until('all are accepted', lambda: sum(incoming()) == 2 * each)
            held = incoming()
            answered = sum(ping_all(run, one, each)[0] for one in clients)
        return {'asked': 2 * each, 'held': sum(held), 'answered': answered, 'share': held[0] / sum(held)}


class AtTheLimit(Case):
    name = 'M3'
    title = '25,000 clients connect to a server with 20,000 descriptors'
    seconds = 60
    goals = (
        Goal('CPU use is below 1 % while nothing can be accepted', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('one line is logged', lambda m: m['lines'] == 1),
        Goal(
            'the server is full again within 1 s after 100 clients close', lambda m: m['full_again_s'] <= 1, timed=True
        ),
        Goal(
            'all accepted clients are answered, and no others',
            lambda m: m['answered'] == m['accepted'] == m['accepted_then'],
        ),
        Goal('no descriptor is left when the clients have disconnected', lambda m: m['descriptors_left'] == 0),
    )

    def measure(self, run):
        most = run.count(limit(), 60)
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Child('programs:serve_echo', limit=most))
            port, at_start = server.receive(), server.descriptors()
            clients = {'port': port, 'count': most * 5 // 8}
            crowds = [stack.enter_context(Child('programs:crowd', **clients)) for _ in range(2)]
            found = {'clients': 2 * clients['count'], 'descriptor_limit': most}
            found |= self.fill(run, server, crowds, most - at_start)
            found |= self.make_room(server, crowds[0], found['accepted'])
            found['answered'] = sum(ask_all(crowds, 'ping'))
            found['accepted_then'] = server.ask('look')['incoming']
            ask_all(crowds, 'leave')
            with contextlib.suppress(Failed):
                wait_until('all clients are gone', lambda: server.descriptors() == at_start)
            look = server.ask('look')
            found |= {name: look[name] for name in ('lines', 'accept_pauses')}
            return {**found, 'descriptors_left': server.descriptors() - at_start}

    def fill(self, run, server, crowds, room):
        """Connect all clients, and measure the CPU time while the server is full."""
        ask_all(crowds, 'connect')
        wait_until('the descriptor limit is reached', lambda: server.ask('look')['incoming'] == room)
        wait(run.seconds(2, 0.2), run, 'full')
        cpu, began = server.cpu(), time.monotonic()
        wait(run.seconds(5, 0.7), run, 'nothing can be accepted')
        share = (server.cpu() - cpu) / (time.monotonic() - began)
        return {'accepted': server.ask('look')['incoming'], 'cpu_share': share}

    def make_room(self, server, crowd, accepted):
        """Close some clients, and wait until the same number of others has been accepted."""
        gone = crowd.ask('leave', count=min(100, accepted // 10))
        again = wait_until('the server is full again', lambda: server.ask('look')['accepts'] == accepted + gone)
        return {'closed': gone, 'full_again_s': again}
