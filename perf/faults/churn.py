"""Connections that come and go: a million of them, and what is left behind.

Owns M5. The rule: the server's garbage collector is off, so what is freed is freed by reference counts alone, and every
object that stays is seen.
"""

import contextlib
import selectors
import time

from perf.common.server import Failed
from perf.loads.sockets import connect

from .case import Case, Goal
from .child import Child
from .held import wait_until
from .programs import source

CONNECTIONS = 1_000_000
WARM = 2_000  # connections before the first look
STEP = 5_000
AT_ONCE = 50


class Churn(Case):
    name = 'M5'
    title = 'a million connections: connect, one byte, close'
    seconds = 240
    goals = (
        Goal('each is answered', lambda m: m['answered'] == m['asked']),
        Goal('no descriptor is left', lambda m: m['descriptors_left'] == 0),
        Goal('no object is left, with the collector off', lambda m: m['objects_left'] <= 0),
        Goal('RSS has grown by less than 1 MB', lambda m: m['rss_grown'] < 1 << 20),
    )

    def measure(self, run):
        count = run.count(CONNECTIONS, 1_000)
        with Child('programs:serve_echo', collector=False) as server:
            with Child('churn:come_and_go', port=server.hear()) as clients:
                clients.ask('go', count=WARM)
                before = self.look(server)
                answered, cpu, began = 0, server.cpu(), time.monotonic()
                for came in range(0, count, STEP):
                    answered += clients.ask('go', count=min(STEP, count - came))
                    run.progress(came, count, f'{answered:,} answered')
                took, cpu = time.monotonic() - began, server.cpu() - cpu
                after = self.look(server)
        left = {f'{name}_left': after[name] - before[name] for name in ('descriptors', 'objects')}
        rates = {'per_second': count / took, 'server_cpu_us_each': cpu / count * 1e6}
        return {'asked': count, 'answered': answered, **left, 'rss_grown': after['rss'] - before['rss'], **rates}

    def look(self, server):
        with contextlib.suppress(Failed):
            wait_until('all are gone', lambda: server.ask('look')['incoming'] == 0)
        return {'objects': server.ask('objects'), 'descriptors': server.descriptors(), 'rss': server.memory()}


class Passers:
    """Clients that ask once, are answered, and go, some of them at a time."""

    def __init__(self, port):
        self.port = port
        self.came = 0

    def go(self, count):
        """How many were answered."""
        answered = left = 0
        last = self.came + count
        with selectors.DefaultSelector() as selector:
            for _ in range(min(AT_ONCE, count)):
                self.come(selector)
            while left < count:
                ready = selector.select(10)
                if not ready:
                    raise TimeoutError(f'{count - left} clients were not answered')
                for key, _ in ready:
                    answered += key.fileobj.recv(2) == b'x'
                    left += 1
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    if self.came < last:
                        self.come(selector)
        return answered

    def come(self, selector):
        sock = connect(self.port, source(self.came))
        self.came += 1
        sock.send(b'x')
        selector.register(sock, selectors.EVENT_READ)


def come_and_go(control, port):
    control.serve({'go': Passers(port).go})
