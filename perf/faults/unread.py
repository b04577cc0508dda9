"""Replies that no client reads, from a server that respects back-pressure and from a server that ignores it (M6).

Every write has its own copy of the bytes, so waiting data shows in the memory of the process. The clients have small
receive buffers, so data waits in the server's memory and not in the kernel.
"""

import time

import reactor

from .case import Case, Goal
from .child import Child
from .held import open_all, wait, wait_until
from .programs import Looks

CLIENTS = 1_000
REPLY = 100_000_000  # bytes of a reply
PIECE = 65536  # bytes in one write
HIGH_WATER, MAX_BUFFERED = 65536, 16 << 20  # the reactor's defaults
SLACK = 50_000_000  # bytes of RSS allowed for everything else
AT_ONCE = 64  # connections that are accepted, and so write, in one turn
RECEIVE_BUFFER = 4096
WATCHED = 10.0  # seconds for which the waiting connections are measured


class Unread(Case):
    name = 'M6'
    title = '1,000 clients that never read their 100 MB'
    seconds = 60
    goals = (
        Goal(
            'with back-pressure, RSS is at most 1,000 x (high water 64 KiB + one write of 64 KiB) + 50 MB',
            lambda m: m['peak_rss'] <= m['clients'] * (HIGH_WATER + PIECE) + SLACK,
        ),
        Goal('CPU use is below 1 % while the connections wait', lambda m: m['cpu_share'] < 0.01, timed=True),
        Goal('with back-pressure, no connection is cut off', lambda m: m['open'] == m['clients']),
        Goal(
            'without back-pressure, each connection is aborted with WriteBufferFull, at most one write above 16 MiB',
            lambda m: (
                m['aborted'] == {'WriteBufferFull': m['clients']}
                and MAX_BUFFERED <= m['least_buffered'] <= m['most_buffered'] < MAX_BUFFERED + PIECE
            ),
        ),
        Goal(
            'without back-pressure, RSS is at most 64 x 16 MiB (the connections accepted in one turn) + 50 MB',
            lambda m: m['peak_rss_heedless'] <= AT_ONCE * (MAX_BUFFERED + PIECE) + SLACK,
        ),
    )

    def measure(self, run):
        count = run.count(CLIENTS, 10)
        return {'clients': count, **self.heedful(run, count), **self.heedless(run, count)}

    def heedful(self, run, count):
        with Child('unread:serve_heedful') as server:
            with Child('programs:hold', port=server.receive(), receive_buffer=RECEIVE_BUFFER) as clients:
                open_all(run, [clients], count, 'opened')
                wait_until('all connections are accepted', lambda: server.ask('look')['incoming'] == count)
                cpu, began = server.cpu(), time.monotonic()
                wait(run.seconds(WATCHED, 0.5), run, 'no client reads')
                share = (server.cpu() - cpu) / (time.monotonic() - began)
                look = server.ask('look')
                sent = look['bytes_out'] / count
                rss = {'peak_rss': server.peak_memory(), 'taken_by_the_kernel_each': sent}
                return {'open': look['incoming'], **rss, 'cpu_share': share}

    def heedless(self, run, count):
        with Child('unread:serve_heedless') as server:
            with Child('programs:hold', port=server.receive(), receive_buffer=RECEIVE_BUFFER) as clients:
                clients.send('open', count=count)  # some clients are cut off before the last one is connected
                clients.receive()
                wait_until('all connections are cut off', lambda: server.ask('ends')['count'] == count)
                ends = server.ask('ends')
                # Not ru_maxrss: a program inherits it from the process that started it.
                peak = {'peak_rss_heedless': server.peak_memory()}
        del ends['count']
        return ends | peak


def serve_heedful(control):
    """Run a server that writes each reply while `write` returns True, and continues in `on_drain`."""

    def write_more(conn):
        while conn.data and conn.write(piece()):
            conn.data -= PIECE

    def begin(conn):
        conn.data = REPLY
        write_more(conn)

    def main(r):
        control.attach(r, Looks(r).commands())
        control.send(r.listen_tcp('127.0.0.1', 0, on_connect=begin, on_drain=write_more).address[1])

    reactor.run(main)


def serve_heedless(control):
    """Run a server that writes each reply at once, whatever `write` returns."""
    ends, buffered = {}, []

    def begin(conn):
        for _ in range(REPLY // PIECE):
            conn.write(piece())

    def ended(conn, exc):
        kind = type(exc).__name__
        ends[kind] = ends.get(kind, 0) + 1
        buffered.append(conn.buffered)

    def report():
        least, most = min(buffered, default=0), max(buffered, default=0)
        return {'count': len(buffered), 'aborted': ends, 'least_buffered': least, 'most_buffered': most}

    def main(r):
        control.attach(r, {'ends': report})
        control.send(r.listen_tcp('127.0.0.1', 0, on_connect=begin, on_close=ended).address[1])

    reactor.run(main)


def piece():
    return b'x' * PIECE
