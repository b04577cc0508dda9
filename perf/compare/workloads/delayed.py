"""The seed workload: each connection sends a request, waits a second for its reply, and is closed.

The rate is fixed, so every peer has the same number of open connections and does the same work.
"""

from perf.common.server import Failed
from perf.compare.peers.common import DELAY, LATE_REPLY
from perf.loads.delayed import answer_times
from perf.loads.fixed_rate import p50_and_p99

from .workload import Metric, Workload

WARM_UP = 0.1  # seconds of load before the measurement
MOST_LOST = 0.01  # share of the replies that may be missing


class Seed(Workload):
    server = 'seed'
    metrics = (
        Metric('cpu_us_per_connection', 'µs CPU/connection'),
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
        answer_times(server.port, rate, WARM_UP, len(LATE_REPLY))
        before = server.cpu()
        times, most = answer_times(server.port, rate, seconds, len(LATE_REPLY))
        spent = server.cpu() - before
        if len(times) < rate * seconds * (1 - MOST_LOST) or most < 0.9 * rate * DELAY:
            raise Failed(f'{len(times)} replies to {rate * seconds:.0f} requests, at most {most} open at once')
        late = p50_and_p99([seconds - DELAY for seconds in times])
        return {'cpu_us_per_connection': spent / len(times) * 1e6, **late, 'rss_mb': server.memory() / 1e6}
