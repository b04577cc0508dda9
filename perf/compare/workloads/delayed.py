"""The seed workload: each connection sends a request, waits a second for its reply, and is closed.

The rate is fixed, so every peer has the same number of open connections and does the same work.
"""

from perf.common.arithmetic import quantile
from perf.common.server import Failed
from perf.compare.peers.common import DELAY, LATE_REPLY
from perf.loads.delayed import answer_times

from .workload import Metric, Spent, Workload, spent_metrics

WARM_UP = 0.1  # seconds of load before the measurement
TICKS = 0.0, 0.002, 0.004  # seconds, a different tick of the load in each round: so the number of wake-ups varies
MOST_LOST = 0.01  # share of the replies that may be missing


class Seed(Workload):
    server = 'seed'
    metrics = (
        *spent_metrics('connection', equal=True),
        Metric('p50_us', 'µs late, median'),
        Metric('p99_us', 'µs late, 99 %'),
        Metric('rss_mb', 'MB of RSS at the end'),
    )

    def __init__(self, name, rate):
        self.name = name
        self.rate = rate
        self.about = f'a reply after {DELAY:g} s, then close; {rate:,} new connections a second, as many open at once'

    def figures(self, server, window):
        rate, seconds = self.rate, window.seconds + DELAY
        tick = TICKS[window.index % len(TICKS)]
        answer_times(server.port, rate, WARM_UP, len(LATE_REPLY), tick)
        spent = Spent(server)
        times, most = answer_times(server.port, rate, seconds, len(LATE_REPLY), tick)
        each = spent.per('connection', len(times))
        if len(times) < rate * seconds * (1 - MOST_LOST) or most < 0.9 * rate * DELAY:
            raise Failed(f'{len(times)} replies to {rate * seconds:.0f} requests, at most {most} open at once')
        late = {'p50_us': (quantile(times, 0.5) - DELAY) * 1e6, 'p99_us': (quantile(times, 0.99) - DELAY) * 1e6}
        return {**each, **late, 'rss_mb': server.memory() / 1e6}
