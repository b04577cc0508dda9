"""The base class of workloads. A workload has a name, measures a server, and yields figures.

`measure` returns a dict with a figure for each metric, or raises.
"""

from perf.common.server import Failed, Server


class Metric:
    """A kind of figure: its name, its unit, and whether 'more' or 'less' is better."""

    def __init__(self, name, unit, better='less'):
        self.name = name
        self.unit = unit
        self.better = better


class Window:
    """The length and the scale of a measurement, and the core on which the server runs."""

    def __init__(self, seconds, scale, server_core):
        self.seconds = seconds
        self.scale = scale  # factor for all counts: 1, or 0.1 with --quick
        self.server_core = server_core

    def scaled(self, count):
        return max(1, int(count * self.scale))


class Workload:
    """A task that servers are measured with.

    name     the name by which the workload is chosen
    about    a one-line description for the report
    server   the workload that the peer's server program is started with
    metrics  the kinds of figures that the workload yields
    """

    name = about = server = ''
    metrics: tuple = ()

    def peers(self, known):
        """Return the known peers that can run this workload."""
        return [peer for peer in known if self.server in peer.workloads]

    def measure(self, peer, window):
        """Start the peer's server, measure it and stop it; return the figures by name."""
        with Server(peer, self.server, window.server_core) as server:
            figures = self.figures(server, window)
            if server.process.poll() is not None:
                raise Failed(f'{peer.name} ended: {server.last_words()}')
            return figures

    def figures(self, server, window):
        """Measure a running server; return the figures by name."""
        raise NotImplementedError
