"""A million connections are opened and closed, and nothing may be left of them (M5).

The server's garbage collector is off, so objects are freed by reference counts alone, and every object that is left is
counted.
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
WARM = 2_000  # connections for warming up
STEP = 5_000  # connections made by one command
AT_ONCE = 50  # connections open at the same time


class Churn(Case):
    name = 'M5'
    title = 'a million connections: connect, send one byte, close'
    seconds = 240
    goals = (
        Goal('each byte is answered', lambda m: m['answered'] == m['asked']),
        Goal('no descriptor is left', lambda m: m['descriptors_left'] == 0),
        Goal('no object is left, with the garbage collector off', lambda m: m['objects_left'] <= 0),
        Goal('RSS has grown by less than 1 MB', lambda m: m['rss_grown'] < 1 << 20),
    )

    def measure(self, run):
        count = run.count(CONNECTIONS, 1_000)
        with Child('programs:serve_echo', collector=False) as server:
            with Child('churn:come_and_go', port=server.receive()) as clients:
                clients.ask('go', count=WARM)
                before = self.look(server)
                answered, cpu, began = 0, server.cpu(), time.monotonic()
                for done in range(0, count, STEP):
                    answered += clients.ask('go', count=min(STEP, count - done))
                    run.progress(done, count, f'{answered:,} answered')
                took, cpu = time.monotonic() - began, server.cpu() - cpu
                after = self.look(server)
        left = {f'{name}_left': after[name] - before[name] for name in ('descriptors', 'objects')}
        rates = {'per_second': count / took, 'server_cpu_us_each': cpu / count * 1e6}
        return {'asked': count, 'answered': answered, **left, 'rss_grown': after['rss'] - before['rss'], **rates}

    def look(self, server):
        with contextlib.suppress(Failed):
            wait_until('all connections are closed', lambda: server.ask('look')['incoming'] == 0)
        return {'objects': server.ask('objects'), 'descriptors': server.descriptors(), 'rss': server.memory()}


class Passers:
    """Clients that connect, send one byte, read the answer and close; AT_ONCE are connected at the same time."""

    def __init__(self, port):
        self.port = port
        self.opened = 0

    def go(self, count):
        """Make `count` connections; return how many were answered."""
        answered = closed = 0
        last = self.opened + count
        with selectors.DefaultSelector() as selector:
            for _ in range(min(AT_ONCE, count)):
                self.connect(selector)
            while closed < count:
                ready = selector.select(10)
                if not ready:
                    raise TimeoutError(f'{count - closed} clients were not answered')
                for key, _ in ready:
                    answered += key.fileobj.recv(2) == b'x'
                    closed += 1
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    if self.opened < last:
                        self.connect(selector)
        return answered

    def connect(self, selector):
        sock = connect(self.port, source(self.opened))
        self.opened += 1
        sock.send(b'x')
        selector.register(sock, selectors.EVENT_READ)


def come_and_go(control, port):
    control.serve({'go': Passers(port).go})
