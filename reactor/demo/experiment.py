"""The whole experiment: servers and load generators in separate processes, and a table of the results.

All connections are open at once before the first answer is sent. The results are counted by the servers, and memory is
measured from outside. No process is left behind.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import sys
from selectors import DefaultSelector
from time import monotonic
from typing import Any

from .. import Process, Reactor
from ..kernel.platforms import SO_REUSEPORT
from ..observe import memory
from ..observe.live import LivePage
from .control import ControlConnection
from .limits import raise_descriptor_limit, source_addresses
from .memory import kernel_memory, memory_kind, total_memory
from .namespace import enter_namespace
from .plan import BIG, Plan, confirmed, duration, plan, refusal
from .progress import Progress
from .results import each, percentiles, table

HOST = '127.0.0.1'
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Started without `site` (-S), because its imports cost three megabytes in each process.
CHILD = (
    sys.executable, '-S', '-E', '-c',
    f'import sys; sys.path.insert(0, {ROOT!r}); from reactor.demo.child import main; main()',
)  # fmt: skip
ANSWER_GRACE = 60.0  # seconds that an answer may take in addition to the delay, because all cores are busy
ANSWERS = 1000  # answers a second at the very least; an experiment with more connections may take longer
SETTLE_GRACE = 10.0  # seconds for the servers to accept all connections of the loads
LOADS_AT_ONCE = 4  # loads that open connections at the same time: each of them wakes up often for its schedule
REPORT_EVERY, REPORT_EVERY_OF_MANY = 0.2, 1.0  # seconds between two reports of a process; of more than MANY processes
MANY = 16
HOLD = 10.0  # seconds for which a big experiment holds all connections, to measure what that costs
REST = 2 * REPORT_EVERY_OF_MANY  # seconds after which the last reports from before the hold have arrived
END_TIME = 25.0  # seconds that the processes have to end
STAYS = 'This page stays until Ctrl-C in the terminal'  # shown on the live page
INTERRUPTED = 'The experiment has ended: interrupted'


class ChildProcess:
    """A server or load process. `status` has the last value received from the process for each key."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.status: dict[str, Any] = {}
        ours, theirs = socket.socketpair()
        with theirs:
            # Ctrl-C reaches the whole process group, but the experiment ends its children itself. They inherit this
            # mask, so that SIGINT does not interrupt them, even while Python starts.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process: Process = experiment.r.spawn(CHILD, stdin=theirs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid: int = self.process.pid
        self.control: ControlConnection = ControlConnection(experiment.r, ours, self.on_message, self.on_gone)
        self.control.send(do='report', every=experiment.report_every)
        self.base_memory = 0  # RSS in bytes before the first connection, for the live page
        self.base_cpu: float = 0.0

    def on_message(self, message: dict[str, Any]) -> None:
        self.status.update(message)
        self.experiment.handle_message(self, message)

    def on_gone(self) -> None:
        self.experiment.handle_gone(self)


class Experiment:
    """The experiment, run by one reactor. At the end, either `result` or `failure` (a text) is set."""

    def __init__(self, r: Reactor, plan: Plan, *, rate: float, delay: float, hold: float, progress: Progress,
                 watched: bool = False) -> None:  # fmt: skip
        self.r = r
        self.plan = plan
        self.connections = plan.connections
        self.rate = rate
        self.delay = delay
        self.hold = hold
        self.progress = progress
        self.watched = watched  # whether the servers report their counters
        self.report_every = REPORT_EVERY if plan.servers + plan.loads <= MANY else REPORT_EVERY_OF_MANY
        self.servers: list[ChildProcess] = []
        self.loads: list[ChildProcess] = []
        self.port: int = 0
        self.began: float = 0.0
        self.waiting: list[tuple[ChildProcess, dict[str, Any]]] = []  # loads that have not begun, with their messages
        self.opening: dict[ChildProcess, int] = {}  # loads that open connections: how many
        self.settled: float = 0.0
        self.held: float | None = None  # when the hold began
        self.idle_cpu: float | None = None
        self.slab: dict[str, int | None] = {}  # bytes of the kernel's memory before, with all open, and after
        self.released: float | None = None
        self.peak_open: int = 0
        self.memory_kind: str = memory_kind()
        self.base_memory: int = 0
        self.peak_memory: int = 0
        self.base_load_memory: int = 0
        self.load_memory: int = 0
        self.cpu_before: float = 0.0
        self.own_network: bool = False  # whether the processes run in a network namespace of their own
        self.done: bool = False
        self.failure: str | None = None
        self.result: dict[str, Any] = {}

    # -- starting

    def start(self) -> None:
        """Start the first server, which picks the port for all servers."""
        self.slab['before'] = kernel_memory()
        self.start_server()
        self.progress.start(self.r, self.line)

    def start_server(self) -> None:
        server = ChildProcess(self)
        self.servers.append(server)
        server.control.send(do='listen', host=HOST, port=self.port, delay=self.delay, reuse_port=SO_REUSEPORT >= 0,
                            watched=self.watched)  # fmt: skip

    def start_load(self) -> None:
        self.loads.append(ChildProcess(self))

    def begin(self) -> None:
        """Let the loads open connections. All processes run by now, so pages are shared by as many as at the peak."""
        self.base_memory = total_memory((server.pid for server in self.servers), self.memory_kind)
        self.base_load_memory = total_memory((load.pid for load in self.loads), self.memory_kind)
        count = len(self.loads)
        timeout = 2 * self.connections / self.rate + self.delay + self.hold + self.answer_grace
        self.began = monotonic()
        rate = self.rate / min(count, LOADS_AT_ONCE)
        for n, load in enumerate(self.loads):
            share = self.connections // count + (n < self.connections % count)
            message = {'connections': share, 'rate': rate, 'timeout': timeout,
                       'sources': source_addresses(share, n + 1)}  # fmt: skip
            self.waiting.append((load, message))
        self.waiting.reverse()
        self.open_more()

    def open_more(self) -> None:
        """Let further loads begin, so that LOADS_AT_ONCE of them open connections."""
        for load, share in list(self.opening.items()):
            if load.status.get('settled', 0) >= share:
                del self.opening[load]
        while self.waiting and len(self.opening) < LOADS_AT_ONCE:
            load, message = self.waiting.pop()
            self.opening[load] = message['connections']
            load.control.send(do='load', host=HOST, port=self.port, **message)

    @property
    def answer_grace(self) -> float:
        return ANSWER_GRACE + self.connections / ANSWERS

    # -- messages

    def handle_message(self, process: ChildProcess, message: dict[str, Any]) -> None:
        """Called with each message from a process: begin the next step if the current step is complete."""
        if 'failed' in message:
            self.fail(message['failed'])
        elif 'ready' in message:
            if process in self.loads:
                if len(self.loads) < self.plan.loads:
                    self.start_load()
                else:
                    self.begin()
        elif 'listening' in message:
            self.port = message['listening']
            process.base_memory = memory(process.pid) or 0
            process.base_cpu = process.status['cpu']
            if len(self.servers) < self.plan.servers:
                self.start_server()
            else:
                self.start_load()
        elif self.released is None:
            self.open_more()
            self.release_if_all_are_open()
        elif all('reply_times' in load.status for load in self.loads) and process in self.servers:
            if self.total(self.servers, 'open') == 0 or monotonic() > self.released + self.delay + self.answer_grace:
                self.finish()

    def release_if_all_are_open(self) -> None:
        self.peak_open = max(self.peak_open, self.total(self.servers, 'open'))
        if self.held is not None or not self.began or self.total(self.loads, 'settled') < self.connections:
            return
        self.settled = self.settled or monotonic()
        connected = self.total(self.loads, 'connected')
        if self.peak_open >= connected or monotonic() > self.settled + SETTLE_GRACE:
            # No answer has been sent yet, so all the connections that the servers report are open at the same time.
            self.peak_memory = total_memory((server.pid for server in self.servers), self.memory_kind)
            self.load_memory = total_memory((load.pid for load in self.loads), self.memory_kind)
            self.slab['open'] = kernel_memory()
            self.held = monotonic()
            # The timers of the last requests still fire during the delay; after it, nothing moves.
            self.r.call_later(self.delay + REST if self.hold else 0, self.measure)

    def measure(self) -> None:
        """Hold the connections for a while; what the servers use meanwhile is what it costs to hold them."""
        self.held, self.cpu_before = monotonic(), self.total(self.servers, 'cpu')
        self.r.call_later(self.hold, self.release)

    def release(self) -> None:
        """Let the servers answer."""
        self.released = monotonic()
        if self.hold and self.held is not None:
            self.idle_cpu = (self.total(self.servers, 'cpu') - self.cpu_before) / (self.released - self.held)
        for server in self.servers:
            server.control.send(do='release')

    def handle_gone(self, process: ChildProcess) -> None:
        """Called when a process has ended. This is an error unless the experiment has finished."""
        if not self.done:
            role = 'server' if process in self.servers else 'load'
            self.fail(f'a {role} process (pid {process.pid}) ended early; see its output above')

    @staticmethod
    def total(processes: list[ChildProcess], name: str) -> Any:
        return sum(process.status.get(name, 0) for process in processes)

    def counters(self) -> dict[str, Any]:
        """Return the counters of the servers, as a source for the live page."""
        return {
            f'server {n}': {**server.status['counters'], 'base_memory': server.base_memory}
            for n, server in enumerate(self.servers, 1)
            if 'counters' in server.status
        }

    def outcome(self) -> str:
        """Describe how the experiment has ended, in one sentence."""
        if self.result:
            answered, errors = self.result['answered'], self.result['errors']
            return f'The experiment has ended: {answered:,} answered, {errors:,} errors. {STAYS}'
        return f'The experiment has ended: {self.failure}. {STAYS}' if self.failure else INTERRUPTED

    def line(self) -> str:
        """Return a line for the progress display."""
        if not self.began:
            return 'starting'
        errors = sum(sum(load.status.get('errors', {}).values()) for load in self.loads)
        seconds, opened = monotonic() - self.began, self.total(self.servers, 'open')
        finished = self.total(self.servers, 'finished')
        line = f'{seconds:5.1f} s   open {opened:,} of {self.connections:,}   answered {finished:,}   errors {errors:,}'
        if self.connections <= BIG or not opened or self.released is not None:
            return line
        if self.held is not None:
            return f'{line}   all are open'
        return f'{line}   all open in about {duration(seconds * (self.connections - opened) / opened)}'

    # -- ending

    def end_processes(self) -> None:
        """Let all processes exit, and wait for them; kill those that have not ended after END_TIME."""
        self.done = True
        for child in self.servers + self.loads:
            child.control.stream.close()
        until = monotonic() + END_TIME
        while any(not child.process.closed for child in self.servers + self.loads) and monotonic() < until:
            self.r.run_once(0.1)
        for child in self.servers + self.loads:
            if not child.process.closed:
                child.process.kill()
        self.slab['after'] = kernel_memory()

    def fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.done = True
        self.r.stop()

    def finish(self) -> None:
        """Compute the results and stop the reactor."""
        self.done = True
        times = sorted(time for load in self.loads for time in load.status['reply_times'])
        opening = max(load.status['opened'] for load in self.loads) - self.began
        answered = len(times)
        errors: dict[str, int] = {}
        for load in self.loads:
            for kind, count in load.status['errors'].items():
                errors[kind] = errors.get(kind, 0) + count
        cpu = sum(server.status['cpu'] - server.base_cpu for server in self.servers)
        assert self.released is not None
        after = sorted(time - self.released for load in self.loads for time in load.status['replied'])
        self.result = {
            'connections': self.connections,
            'answered': answered,
            'errors': sum(errors.values()),
            'errors_by_kind': errors,
            'peak_open': self.peak_open,
            'seconds': round(monotonic() - self.began, 3),
            'rate': round(answered / opening, 1) if opening else None,
            'waited_for_all': round(max(0.0, self.released - self.began - self.delay), 3),
            'reply_time': percentiles(times),
            'server': {
                'processes': len(self.servers),
                'memory': self.memory_kind,
                'memory_bytes': self.peak_memory,
                'base_memory_bytes': self.base_memory,
                'bytes_per_connection': each(self.peak_memory - self.base_memory, self.peak_open),
                'cpu_us_per_connection': each(cpu * 1e6, self.peak_open),
            },
            'answers_after_release': percentiles(after),
            'load': {
                'processes': len(self.loads),
                'memory_bytes': self.load_memory,
                'bytes_per_connection': each(self.load_memory - self.base_load_memory, self.peak_open),
            },
            'kernel_memory_bytes': self.slab,
            'idle_cpu': None if self.idle_cpu is None else round(self.idle_cpu, 4),
            'own_network': self.own_network,
            'selector': DefaultSelector.__name__,
            'python': platform.python_version(),
        }
        self.r.stop()


def run_experiment(
    connections: int, rate: float, delay: float, hold: float | None, as_json: bool, quiet: bool, yes: bool,
    dashboard: int | None = None,
) -> int:  # fmt: skip
    """Run the experiment, print the results and return the exit status."""
    if os.name != 'posix':
        print('reactor.demo: the experiment passes sockets to child processes, which this platform does not support; '
              'run `serve` and `load` in two terminals', file=sys.stderr)  # fmt: skip
        return 1
    per_process = raise_descriptor_limit()
    big = connections > BIG
    hold = (HOLD if big else 0.0) if hold is None else hold
    wanted = plan(connections, rate, delay + hold, per_process)
    with Reactor() as r:
        experiment = Experiment(r, wanted, rate=rate, delay=delay, hold=hold, progress=Progress(quiet),
                                watched=dashboard is not None)  # fmt: skip
        # The live page listens in the network of this machine, so it comes first.
        page = None if dashboard is None else live_page(experiment, dashboard)
        experiment.own_network = enter_namespace()
        reason = refusal(wanted, per_process, SO_REUSEPORT >= 0, experiment.own_network)
        if reason is not None or (big and not confirmed(wanted, yes)):
            if reason is not None:
                print(f'reactor.demo: {reason}', file=sys.stderr)
            return 1
        r.add_signal_handler(signal.SIGTERM, experiment.fail, 'ended by SIGTERM').unref()
        try:
            r.call_soon(experiment.start)
            r.run()
        finally:
            experiment.progress.end()
            if page is not None:
                page.end(experiment.outcome())
            experiment.end_processes()
        status = report(experiment, as_json)
        if page is not None:
            keep(r, page)
    return status


def live_page(experiment: Experiment, port: int) -> LivePage:
    """Serve the live page. Samples are taken even while no browser shows them, because it can be opened at the end."""
    page = LivePage(experiment.r, HOST, port, experiment.counters, about='The experiment of reactor.demo.')
    page.record()
    print(f'live page at {page.url}', file=sys.stderr, flush=True)
    return page


def keep(r: Reactor, page: LivePage) -> None:
    """Serve the page of the ended experiment until Ctrl-C."""
    page.listener.ref()
    try:
        print(f'the live page stays at {page.url} until Ctrl-C', file=sys.stderr, flush=True)
        r.run()
    except KeyboardInterrupt:
        pass


def report(experiment: Experiment, as_json: bool) -> int:
    """Print how the experiment has ended and return the exit status."""
    if experiment.failure:
        print(f'reactor.demo: {experiment.failure}', file=sys.stderr)
        return 1
    result, asked = experiment.result, experiment.connections
    print(json.dumps(result) if as_json else table(result, experiment.delay), flush=True)
    return 0 if result['peak_open'] == asked == result['answered'] and not result['errors'] else 1
