"""What a workload is: a name, what it does to a server, and the figures it yields.

Owns the base class. The rule: `measure` returns figures by name, all of them in `metrics`, or raises.
"""

from perf.common.server import Failed, Server


class Metric:
    """A figure: its unit, and whether more of it is better."""

    def __init__(self, name, unit, better='less'):
        self.name = name
        self.unit = unit
        self.better = better


class Window:
    """How long and how much to measure, and on which cores."""

    def __init__(self, seconds, scale, server_core):
        self.seconds = seconds
        self.scale = scale  # 1, or a tenth of all counts with --quick
        self.server_core = server_core

    def scaled(self, count):
        return max(1, int(count * self.scale))


class Workload:
    """`name`, `about` (one line for the reader), `metrics`, and `server` (what the peer is asked for)."""

    name = about = server = ''
    metrics: tuple = ()

    def peers(self, known):
        """Those of the known peers that can do it."""
        return [peer for peer in known if self.server in peer.workloads]

    def measure(self, peer, window):
        """Start the peer, measure, end it."""
        with Server(peer, self.server, window.server_core) as server:
            figures = self.figures(server, window)
            if server.process.poll() is not None:
                raise Failed(f'{peer.name} ended: {server.last_words()}')
            return figures

    def figures(self, server, window):
        raise NotImplementedError
