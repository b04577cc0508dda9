"""The base classes of workloads. A workload has a name, measures servers, and yields figures.

`figures` returns a dict with a figure for each metric, or raises.
"""

import contextlib
import random
import subprocess

from perf.common.server import Failed, Server


class Metric:
    """A kind of figure: its name, its unit, and whether 'more' or 'less' is better.

    `wakeups` is the name of the figure that explains most of this one, if the number of times that a server wakes up
    depends on chance: then the report also compares at equal numbers of wake-ups.
    """

    def __init__(self, name, unit, better='less', wakeups=None):
        self.name = name
        self.unit = unit
        self.better = better
        self.wakeups = wakeups


class Window:
    """The length and the scale of a measurement, the core on which the server runs, and the number of the round."""

    def __init__(self, seconds, scale, server_core, index=0):
        self.seconds = seconds
        self.scale = scale  # factor for all counts: 1, or 0.1 with --quick
        self.server_core = server_core
        self.index = index

    def round(self, index):
        return Window(self.seconds, self.scale, self.server_core, index)

    def scaled(self, count):
        return max(1, int(count * self.scale))

    @property
    def burst(self):
        """Seconds of a short measurement. The speed of a shared machine hardly changes within a round of bursts."""
        return self.seconds / 4


class Workload:
    """A task that servers are measured with. The servers of all peers run at the same time, and idle but for one.

    name     the name by which the workload is chosen
    about    a one-line description for the report
    server   the workload that the peer's server program is started with
    metrics  the kinds of figures that the workload yields
    passes   how often each round measures each peer: in a random order, and then in the reverse order
    """

    name = about = server = ''
    metrics: tuple = ()
    passes = 2

    def peers(self, known):
        """Return the known peers that can run this workload."""
        return [peer for peer in known if self.server in peer.workloads]

    @contextlib.contextmanager
    def servers(self, peers, window):
        """Start the server of each peer; yield {name: server, or the error with which it failed}."""
        with contextlib.ExitStack() as stack:
            found = {}
            for peer in peers:
                try:
                    found[peer.name] = stack.enter_context(Server(peer, self.server, window.server_core))
                except (Failed, OSError, subprocess.SubprocessError) as exc:
                    found[peer.name] = exc
            yield found

    def measure(self, peer, servers, window):
        """Measure the running server of a peer; return the figures by name."""
        server = servers[peer.name]
        if isinstance(server, Exception):
            raise server
        figures = self.figures(server, window)
        if server.process.poll() is not None:
            raise Failed(f'{peer.name} ended: {server.last_words()}')
        return figures

    def figures(self, server, window):
        """Measure a running server; return the figures by name."""
        raise NotImplementedError


class Fresh(Workload):
    """A workload that starts a new process for each measurement, for instance because it measures memory."""

    passes = 1

    @contextlib.contextmanager
    def servers(self, peers, window):
        yield {}

    def measure(self, peer, servers, window):
        with super().servers([peer], window) as started:
            return super().measure(peer, started, window)


class Spent:
    """What a server spends from now on: CPU time, and how often it wakes up from waiting."""

    def __init__(self, server):
        self.server = server
        self.cpu, self.wakeups = server.cpu(), server.wakeups()

    def per(self, what, count):
        """Return both figures for each of `count` units of work; `what` is the name of such a unit."""
        if not count:
            raise Failed(f'no {what} was answered')
        cpu, wakeups = self.server.cpu() - self.cpu, self.server.wakeups() - self.wakeups
        return {f'cpu_us_per_{what}': cpu / count * 1e6, f'wakeups_per_{what}': wakeups / count}


def spent_metrics(what, *, equal=False):
    """Return the metrics of `Spent.per`; `equal`: compare at equal wake-ups too."""
    wakeups = f'wakeups_per_{what}'
    return (
        Metric(f'cpu_us_per_{what}', f'µs CPU/{what}', wakeups=wakeups if equal else None),
        Metric(wakeups, f'wake-ups/{what}'),
    )


def drawn(peers, workload, index, passes):
    """Return the peers in the order of a round: random, the same in each run, and then reversed if `passes` is 2.

    So no peer profits from its neighbours in every round, and a machine that gets slower during a round is fair to all.
    """
    order = list(peers)
    random.Random(f'{workload} {index}').shuffle(order)
    return order + order[::-1] if passes == 2 else order


def mean(figures):
    """Return the mean of each figure in several dicts of figures."""
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}
