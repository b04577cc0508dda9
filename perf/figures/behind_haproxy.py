"""Workers behind HAProxy that are restarted, and killed, under load.

Owns H1 and H2. The rule: every request is accounted for by the load that sent it, which never asks twice; what HAProxy
asks a second time is told beside it.
"""

import importlib.util
import signal
import time

from measuring.haproxy import Behind, Load, rolling_restart

from .figure import Figure, Goal
from .held import wait

ROUNDS = 100
RATE = 2000  # requests a second
CONNECTIONS = 100
SETTLE = 0.5  # seconds of load before, between and after
KILLING, EVERY = 60.0, 2.0  # seconds in all, seconds between two


class BehindHaproxy(Figure):
    needs = ('haproxy',)

    def missing(self):
        if importlib.util.find_spec('h11') is None:
            return 'no h11, which the workers need; pip install h11'
        return super().missing()


class Rolling(BehindHaproxy):
    name = 'H1'
    title = 'two workers behind HAProxy under 2,000 requests/s on 100 keep-alive connections, restarted in turn, 100 times'
    seconds = 400
    goals = (
        Goal('every request is answered', lambda m: m['answered'] == m['sent'] > 0),
        Goal('none fails', lambda m: m['failed'] == 0),
        Goal('each round restarts both', lambda m: m['restarts'] == 2 * m['rounds']),
        Goal('the load keeps its rate', lambda m: m['sent'] >= 0.99 * RATE * m['seconds'], timed=True),
    )

    def measure(self, run):
        rounds, times = run.count(ROUNDS, 2), []
        roll = rolling_restart().restart_one
        with Behind() as behind, Load(behind.port, RATE, CONNECTIONS) as load:
            wait(SETTLE, run, 'load')
            for index in range(rounds):
                for name, worker in behind.workers.items():
                    began = time.monotonic()
                    if not roll(behind.admin, name, worker.restart):
                        raise RuntimeError(f'{name} does not come back')
                    times.append(time.monotonic() - began)
                run.progress(index, rounds, f'{index + 1} of {rounds} rounds')
            wait(SETTLE, run, 'load')
            found, again = load.result(), behind.sums('wretr', 'wredis', 'econ', 'eresp')
        return {
            'rounds': rounds,
            'restarts': len(times),
            'seconds': found['seconds'],
            'sent': found['requests'],
            'answered': found['replies'],
            'failed': found['failed'],
            **found['errors'],
            'reopened': found['reopened'],
            'asked_again_by_haproxy': again['wretr'] + again['wredis'],
            'longest_restart_s': max(times),
            'p50_ms': found['reply_time']['median'] * 1000,
            'p99_ms': found['reply_time']['p99'] * 1000,
            'longest_ms': found['reply_time']['max'] * 1000,
        }


class Killed(BehindHaproxy):
    name = 'H2'
    title = 'the same under 1,000 GET and 1,000 POST/s, kill -9 of a worker every 2 s for a minute'
    seconds = 75
    goals = (
        Goal('every request ends', lambda m: m['answered'] + m['failed'] == m['sent'] > 0),
        Goal('a kill loses at most what was open on that worker', lambda m: m['kills_that_lost_more'] == 0),
        Goal('what may be asked again is: no GET is lost', lambda m: m['failed_get'] == 0),
        Goal('clients keep their connections but for what was lost', lambda m: m['not_connected'] == 0),
    )

    def measure(self, run):
        kills, every = run.count(KILLING / EVERY, 2), run.seconds(EVERY, 1)
        with Behind() as behind:
            halves = {'connections': CONNECTIONS // 2, 'rate': RATE // 2}
            with (
                Load(behind.port, **halves) as get,
                Load(behind.port, **halves, method='POST', path='/echo') as post,
            ):
                wait(SETTLE, run, 'load')
                killed = self.kill(run, behind, kills, every)
                loads = get.result(), post.result()
        return self.account(killed, *loads)

    def kill(self, run, behind, kills, every):
        """(when, connections open on it, requests in hand) of each kill, on the clock of the wall."""
        killed, began, names = [], time.monotonic(), list(behind.workers)
        for index in range(kills):
            wait(began + index * every - time.monotonic(), run, f'{index} killed')
            name = names[index % len(names)]
            worker = behind.workers[name]
            in_hand = sum(int(row['scur']) for row in behind.admin.servers(name))
            connections = worker.connections()
            killed.append((time.time(), connections, in_hand))
            worker.end(signal.SIGKILL)
            worker.start()
        wait(every, run, 'the last one')
        return killed

    def account(self, killed, get, post):
        lost = sorted(load['began_at'] + when for load in (get, post) for when, _ in load['listed'])
        ends = [when for when, _, _ in killed[1:]] + [float('inf')]
        of = [
            sum(when <= one < end for one in lost)
            for (when, _, _), end in zip(killed, ends, strict=True)
        ]  # fmt: skip
        return {
            'kills': len(killed),
            'sent': get['requests'] + post['requests'],
            'answered': get['replies'] + post['replies'],
            'failed': sum(get['errors'].values()) + sum(post['errors'].values()),
            'failed_get': sum(get['errors'].values()),
            **post['errors'],
            'not_connected': sum(get['connect_errors'].values()) + sum(post['connect_errors'].values()),
            'most_lost_by_a_kill': max(of),
            'open_then': killed[of.index(max(of))][1],
            'in_hand_then': killed[of.index(max(of))][2],
            'kills_that_lost_nothing': of.count(0),
            'kills_that_lost_more': sum(one > open for one, (_, open, _) in zip(of, killed, strict=True)),
            'least_open_at_a_kill': min(open for _, open, _ in killed),
            'longest_ms': max(load['reply_time']['max'] for load in (get, post)) * 1000,
        }
