"""Two workers on one port, behind HAProxy (H3) and behind nginx (H4), are replaced by SIGHUP and killed under load.

The load sends half of its requests over HTTP and half over TCP, accounts for every request and never sends one twice.
A reload must not fail any request. A killed worker may lose one request for each connection that was open on it.
"""

import contextlib
import os
import signal
import socket
import time

from .case import Case, Goal
from .haproxy import CONFIG, Haproxy, Load, Worker
from .held import wait, wait_until
from .nginx import Nginx
from .serving import children

RATE = 2000  # requests a second
CONNECTIONS = 100
RELOADS, KILLS = 50, 20
EVERY = 1.0  # seconds from one kill to the next, after both workers serve again
SETTLE = 0.5  # seconds of load before the first reload, and after each fault
LAME_DUCK = 0.5  # seconds


class Service(Worker):
    """examples/service.py with two workers on one port."""

    def __init__(self, *options):
        self.options = ('--workers', '2', '--lame-duck', str(LAME_DUCK), *options)

    def workers(self):
        """Return the pids of the two workers that serve, or None while a worker is starting or leaving."""
        found = children(self.pid)
        return sorted(found) if len(found) == 2 and all(map(self.holds, found)) else None

    def holds(self, pid):
        """Return how many connections a worker has open on the port of the service."""
        return len(established(pid, self.port))

    def reload(self):
        """Replace both workers, and wait until the old ones have ended."""
        before = set(self.workers())
        self.process.send_signal(signal.SIGHUP)
        wait_until('both workers are replaced', lambda: before.isdisjoint(self.workers() or before))


def established(pid, port):
    """Return the inodes of the connections that a process has accepted on a port."""
    wanted, mine = f':{port:04X}', set()
    with contextlib.suppress(OSError):  # the process may have ended
        for name in os.listdir(f'/proc/{pid}/fd'):
            with contextlib.suppress(OSError):
                mine.add(os.readlink(f'/proc/{pid}/fd/{name}'))
    with open('/proc/net/tcp') as file:
        rows = [line.split() for line in file]
    return [row[9] for row in rows if row[1].endswith(wanted) and row[3] == '01' and f'socket:[{row[9]}]' in mine]


class BehindProxy(Case):
    """Two workers on one port behind a proxy; a subclass says which one."""

    seconds = 150
    options: tuple = ()  # of the service
    goals = (
        Goal('every request ends', lambda m: m['answered'] + m['lost'] == m['sent'] > 0),
        Goal('no request fails while workers are replaced', lambda m: m['lost_by_reloads'] == 0),
        Goal('a killed worker loses at most what was open on it', lambda m: m['kills_that_lost_more'] == 0),
        Goal('every client is connected', lambda m: m['not_connected'] == 0),
        Goal('the load keeps its rate', lambda m: m['sent'] >= 0.95 * RATE * m['seconds'], timed=True),
    )

    def proxy(self, service):
        """Return a context manager: the proxy, which passes on what arrives at its `ports` for HTTP and for TCP."""
        raise NotImplementedError

    def measure(self, run):
        with contextlib.ExitStack() as stack:
            service = Service(*self.options)
            service.start()
            stack.callback(service.end, signal.SIGTERM)
            proxy = stack.enter_context(self.proxy(service))
            wait_until('the proxy uses the service', proxy.up)
            half = {'rate': RATE // 2, 'connections': CONNECTIONS // 2}
            loads = [stack.enter_context(Load(port, **half)) for port in proxy.ports]
            wait_until('both workers have clients', service.workers)
            wait(run.seconds(SETTLE), run, 'load')
            reloads = self.reload(run, service, run.count(RELOADS, 2))
            killed = self.kill(run, service, run.count(KILLS, 2))
            return self.account(reloads, killed, [load.result() for load in loads])

    def reload(self, run, service, count):
        """Replace the workers; return the wall-clock time of the end, and the number of reloads."""
        for index in range(count):
            service.reload()
            wait_until('both workers have clients', service.workers)
            run.progress(index + 1, count, 'reloads')
        wait(SETTLE, run, 'load')
        return time.time(), count

    def kill(self, run, service, count):
        """Kill the workers in turn; return (wall-clock time, connections open on the worker) for each kill."""
        killed = []
        for index in range(count):
            wait_until('both workers have clients', service.workers)
            pid = service.workers()[index % 2]
            killed.append((time.time(), service.holds(pid)))
            os.kill(pid, signal.SIGKILL)
            wait(run.seconds(EVERY, SETTLE), run, f'{index + 1} of {count} killed')
        return killed

    def account(self, reloads, killed, found):
        ended, count = reloads
        lost = [load['began_at'] + when for load in found for when, _ in load['listed']]
        ends = [when for when, _ in killed[1:]] + [float('inf')]
        by = [sum(when <= one < end for one in lost) for (when, _), end in zip(killed, ends, strict=True)]
        return {
            'reloads': count,
            'kills': len(killed),
            'seconds': max(load['seconds'] for load in found),
            'sent': sum(load['requests'] for load in found),
            'answered': sum(load['replies'] for load in found),
            'lost': sum(sum(load['errors'].values()) for load in found),
            'lost_by_reloads': sum(one < ended for one in lost),
            'lost_by_each_kill': by,
            'open_at_each_kill': [open for _, open in killed],
            'kills_that_lost_more': sum(one > open for one, (_, open) in zip(by, killed, strict=True)),
            'not_connected': sum(sum(load['connect_errors'].values()) for load in found),
            'kinds': [load['errors'] for load in found],
            'longest_ms': max(load['reply_time']['max'] for load in found) * 1000,
        }


class SharedHaproxy(BehindProxy):
    needs = ('haproxy',)
    name = 'H3'
    options = Worker.options  # HAProxy passes on the client's address
    title = 'two workers on one port behind HAProxy under 2,000 requests/s: 50 times SIGHUP, then 20 workers are killed'

    def proxy(self, service):
        where = {f'WORKER{number}': f'127.0.0.1:{service.port}' for number in (1, 2)}
        socks = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
        haproxy = Haproxy(CONFIG, dict(zip(('HTTP', 'TCP'), socks, strict=True)), **where)
        for sock in socks:
            haproxy.stack.callback(sock.close)
        haproxy.ports = [sock.getsockname()[1] for sock in socks]
        return haproxy


class SharedNginx(BehindProxy):
    needs = ('nginx',)
    name = 'H4'
    title = 'the same behind nginx'

    def proxy(self, service):
        return Nginx(service.port, service.port, proxy=False)
