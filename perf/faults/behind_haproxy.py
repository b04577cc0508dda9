"""Workers behind HAProxy are restarted (H1) or killed (H2) under load.

The load accounts for every request and never sends one twice. Requests that HAProxy repeats are reported separately.
"""

import signal
import time

from .case import Case, Goal
from .haproxy import Behind, Load, Worker, rolling_restart
from .held import wait, wait_until

ROUNDS = 100
RATE = 2000  # requests a second
CONNECTIONS = 100
SETTLE = 0.5  # seconds of load before and after the restarts or kills
KILLING, EVERY = 60.0, 2.0  # seconds during which workers are killed, and seconds from one kill to the next


class Rolling(Case):
    needs = ('haproxy',)
    name = 'H1'
    title = (
        'two workers behind HAProxy under 2,000 requests/s on 100 keep-alive connections, restarted in turn, 100 times'
    )
    seconds = 200
    goals = (
        Goal('every request is answered', lambda m: m['answered'] == m['sent'] > 0),
        Goal('no request fails', lambda m: m['failed'] == 0),
        Goal('each round restarts both workers', lambda m: m['restarts'] == 2 * m['rounds']),
        Goal('the load keeps its rate', lambda m: m['sent'] >= 0.99 * RATE * m['seconds'], timed=True),
    )

    def measure(self, run):
        rounds, times = run.count(ROUNDS, 1), []
        roll = rolling_restart().restart_one
        with Behind() as behind, Load(behind.port, RATE, CONNECTIONS) as load:
            wait(run.seconds(SETTLE), run, 'load')
            for index in range(rounds):
                for name, worker in behind.workers.items():
                    began = time.monotonic()
                    if not roll(behind.admin, name, worker.restart):
                        raise RuntimeError(f'HAProxy did not put {name} back into use')
                    times.append(time.monotonic() - began)
                run.progress(index, rounds, f'{index + 1} of {rounds} rounds')
            wait(run.seconds(SETTLE), run, 'load')
            found, sums = load.result(), behind.haproxy.sums('wretr', 'wredis', 'connect')
        return {
            'rounds': rounds,
            'restarts': len(times),
            'seconds': found['seconds'],
            'sent': found['requests'],
            'answered': found['replies'],
            'failed': found['failed'],
            **found['errors'],
            'reopened': found['reopened'],
            'repeated_by_haproxy': sums['wretr'] + sums['wredis'],
            'connections_to_workers': sums['connect'],
            'longest_restart_s': max(times),
            'p50_ms': found['reply_time']['median'] * 1000,
            'p99_ms': found['reply_time']['p99'] * 1000,
            'longest_ms': found['reply_time']['max'] * 1000,
        }


class Killed(Case):
    needs = ('haproxy',)
    name = 'H2'
    title = 'the same load, half over HTTP and half over TCP; a worker is killed every 2 s for a minute'
    seconds = 70
    goals = (
        Goal('every request ends', lambda m: m['answered'] + m['lost_by_http'] + m['lost_by_tcp'] == m['sent'] > 0),
        Goal(
            'a kill loses at most one request for each connection of the killed worker',
            lambda m: m['kills_that_lost_more'] == 0,
        ),
        Goal(
            'HAProxy repeats requests where that is safe: HTTP loses no more than TCP',
            lambda m: m['lost_by_http'] <= m['lost_by_tcp'],
            timed=True,
        ),
        Goal('every client is connected', lambda m: m['not_connected'] == 0),
    )

    def measure(self, run):
        kills, every = run.count(KILLING / EVERY, 2), run.seconds(EVERY, 0.7)
        with Behind() as behind:
            half = {'rate': RATE // 2, 'connections': CONNECTIONS // 2}
            with Load(behind.port, **half) as http, Load(behind.tcp_port, **half) as tcp:
                self.settle(run, behind)
                killed = self.kill(run, behind, kills, every)
                found = http.result(), tcp.result()
        return self.account(killed, *found)

    def settle(self, run, behind):
        workers = behind.workers.values()
        wait_until('all clients are connected', lambda: sum(map(Worker.connections, workers)) >= CONNECTIONS // 2)
        wait(run.seconds(SETTLE), run, 'load')

    def kill(self, run, behind, kills, every):
        """Kill the workers in turn; return (wall-clock time, connections open on the worker) for each kill."""
        killed, began, names = [], time.monotonic(), list(behind.workers)
        for index in range(kills):
            run.progress(index, kills, f'{index} of {kills} killed')
            time.sleep(max(0, began + index * every - time.monotonic()))
            wait_until('HAProxy uses all workers', behind.haproxy.up)  # also the worker that was killed last
            worker = behind.workers[names[index % len(names)]]
            killed.append((time.time(), worker.connections()))
            worker.end(signal.SIGKILL)
            worker.start()
        time.sleep(every)
        return killed

    def account(self, killed, http, tcp):
        lost = [load['began_at'] + when for load in (http, tcp) for when, _ in load['listed']]
        ends = [when for when, _ in killed[1:]] + [float('inf')]
        by = [sum(when <= one < end for one in lost) for (when, _), end in zip(killed, ends, strict=True)]
        kinds = {
            kind: http['errors'].get(kind, 0) + tcp['errors'].get(kind, 0) for kind in http['errors'] | tcp['errors']
        }
        return {
            'kills': len(killed),
            'seconds': max(http['seconds'], tcp['seconds']),
            'sent': http['requests'] + tcp['requests'],
            'answered': http['replies'] + tcp['replies'],
            'lost_by_http': sum(http['errors'].values()),
            'lost_by_tcp': sum(tcp['errors'].values()),
            'kinds': kinds,
            'not_connected': sum(http['connect_errors'].values()) + sum(tcp['connect_errors'].values()),
            'lost_by_each_kill': by,
            'open_at_each_kill': [open for _, open in killed],
            'kills_that_lost_more': sum(one > open for one, (_, open) in zip(by, killed, strict=True)),
            'longest_by_http_ms': http['reply_time']['max'] * 1000,
            'longest_by_tcp_ms': tcp['reply_time']['max'] * 1000,
        }
