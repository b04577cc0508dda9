"""Several processes on one simulated network, each with a reactor, descriptors, signals and a clock of its own.

`World.process` starts a process. It runs while the main reactor waits in its poll: one turn at a time, and only if
something is ready. All processes share the network, the paths of sockets, the faults and the time that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from random import Random
from typing import Any

from .agenda import PROCESS_STEP, START
from .faults import Killed
from .files import End
from .kernel import PLENTY, SimKernel
from .mailboxes import Mailbox
from .oracles import Violation
from .places import program_name

# What a process shares with the main process: everything that is not inside a process on a real system.
SHARED = (
    'faults', 'random', 'trace', '_events', '_sequence', '_numbers', 'keys', 'draw', 'latency', '_capacity', 'grain',
    'hosts', 'partitions', 'silent', 'paths', '_at_node', '_bindings', '_accepted', '_waiting', 'clock_grain', 'tick',
)  # fmt: skip
FURTHEST = 86_400e9  # ns: the most that the clocks of two processes differ at the start
DRIFT = 0.0005  # the most that a clock is too fast or too slow: 500 ppm, which NTP still corrects (RFC 5905)
LONGEST_DOWN = 10.0  # seconds until a process that a fault has killed is started again
RETRY = 1.0  # seconds until a process is started again whose program has raised an OSError at the start


class ProcessKernel(SimKernel):
    """The kernel as one process sees it, from its start to its end.

    Args:
        host: The kernel of the main process.
        index: The number of the process: 1, 2 and so on.
        clock: Decides how its clock differs from that of the main process.
    """

    def __init__(self, host: SimKernel, index: int, clock: Random) -> None:
        self.host = host
        self.mortal: bool = False  # whether a fault may kill the process now
        self._offset = int(clock.random() * FURTHEST)
        self.rate: float = 1 + DRIFT * (2 * clock.random() - 1)
        self.dead: bool = False
        self.down: float | None = None  # seconds from its end to its next start; None: only the program starts it
        profile = 'hostile' if host.hostile else 'default'
        super().__init__(host.seed, selector=host.kind, faults=False, descriptors=PLENTY, grain=0, profile=profile)
        self.index = index
        vars(self).update({name: vars(host)[name] for name in SHARED})

    @property
    def time(self) -> int:
        return self.host.time

    @time.setter
    def time(self, time: int) -> None:
        self.host.time = time

    def first_time(self) -> int:
        return self.host.time

    def reading(self, time: int) -> int:
        return super().reading(START + self._offset + int((time - START) * self.rate))

    def pid(self) -> int:
        return 1 + self.index

    def note(self, what: str, fd: int, detail: Any = None) -> None:
        super().note(what, fd + PROCESS_STEP * self.index, detail)

    def moved(self, what: str, fd: int, detail: Any = None) -> None:
        super().moved(what, fd + PROCESS_STEP * self.index, detail)

    def failing(self, name: str, fd: int) -> int:
        if self.mortal and self.running_thread == 1 and self.faults.falls('process.killed', fd, self.index):
            self.down = self.faults.drawn * LONGEST_DOWN
            self.die()
        if self.dead:
            raise Killed
        return super().failing(name, fd)

    def die(self) -> None:
        """End the process as SIGKILL does: its descriptors are closed, and it makes no more calls."""
        self.dead, self.mortal = True, False
        self.suspended.end()
        self.connects.clear()
        for fd in list(self.files):
            self.close_fd(fd)

    # The network is that of the main process.

    def uses(self, *durations: float | None) -> None:
        self.host.uses(*durations)

    def draw_latency(self, file: Any) -> int:
        return self.host.draw_latency(file)

    def delays(self, end: End, fn: Callable[..., object], args: tuple[Any, ...]) -> bool:
        return self.host.delays(end, fn, args)

    def probe(self, end: End) -> None:
        self.host.probe(end)

    def try_connect(self, end: End) -> bool:
        return self.host.try_connect(end)

    def post(self, sender: Mailbox, data: bytes, address: Any) -> None:
        self.host.post(sender, data, address)


class Partition:
    """Processes that are cut off from all others, until `end` is called. `World.partition` makes it."""

    def __init__(self, kernel: SimKernel, part: frozenset[int]) -> None:
        self._kernel = kernel
        self._part = part
        kernel.partitions.append(part)

    def end(self) -> None:
        """End the partition: bytes that have waited arrive now, unless their connection has timed out."""
        if self._part in self._kernel.partitions:
            self._kernel.partitions.remove(self._part)
            self._kernel.deliver_held()


class SimProcess:
    """Another process of a simulated run. `World.process` makes and starts it.

    It ends when nothing is left to wait for, when its program calls `r.stop()`, or when it is killed. What its program
    keeps in memory is lost then. The program is called again at the next start, with a new `World`. If it raises an
    OSError then, because a port is not free yet, the process is started again after a second.

    Attributes:
        name: The name of the process in reports.
        starts: How many times it was started.
        world: The `World` of the program, with its reactor `world.r`; None while the process is not running.
        index: The number of the process, from 1 on.
        kernel: The system as the process sees it since its latest start.
    """

    def __init__(self, simulation: Any, main: Callable[[Any], object], name: str | None, kills: bool) -> None:
        self.name: str = name or getattr(main, '__name__', '') or program_name(main)
        self.starts: int = 0
        self.world: Any = None
        self._simulation = simulation
        self._host: SimKernel = simulation.kernel
        self._main = main
        self._kills = kills
        self._host.others.append(self)
        self.index: int = len(self._host.others)
        self._clock = Random(f'clock {self._host.seed} {self.index}')
        self._running = False

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.world is not None

    def start(self) -> None:
        """Start the process, or start it again after its end. Its program is called in its first turn.

        Raises:
            RuntimeError: It is running.
        """
        if self.world is not None:
            raise RuntimeError(f'the process {self.name} is running; call kill() first')
        self.starts += 1
        with self._without_faults():
            self.kernel: ProcessKernel = ProcessKernel(self._host, self.index, self._clock)
            self.world = self._simulation.open_world(self.kernel, f'{self.name} {self.starts}')
            self.world.r.call_soon(self._begin)
        self.world.note(f'process {self.name} starts')

    def kill(self) -> None:
        """End the process at once, as SIGKILL does. Nothing happens if it is not running.

        No callback is called. The kernel closes its sockets: a peer gets an end of file after the bytes that were sent,
        or a reset if the process has not read all bytes from this peer. The file of a Unix socket stays.
        """
        if self.world is None:
            return
        self.world.note(f'process {self.name} is killed')
        inside = self._running
        self._die()
        if inside:
            raise Killed

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the process if it is running."""
        if self.world is not None:
            self.world.raise_signal(signum)

    # -- called by the main process

    def run_if_ready(self) -> None:
        """Run one turn if the process would not wait in its poll."""
        if self.world is None or self._running:
            return
        r = self.world.r
        if r.timeout() == 0 or r.watchers.selector.is_ready():
            with self._inside():
                if not r.run_once(0):
                    self._finish(r)

    def wakes_at(self) -> int | None:
        """Return the time, in ns, at which a timer wakes the process; None if it has no timer."""
        timeout = None if self.world is None else self.world.r.timeout()
        return None if timeout is None else self._host.time + ceil(timeout * 1e9 / self.kernel.rate)

    def why_alive(self) -> list[str]:
        """Return what the process waits for, one line for each thing."""
        waits = ['it is not running'] if self.world is None else self.world.r.why_alive()
        return [f'[{self.name}] {line}' for line in (*waits, *(f'expects: {text}' for text in self.missing()))]

    def missing(self) -> list[str]:
        """Return the events that the program still expects."""
        if self.world is None:
            return []
        expected = [expectation.text for expectation in self.world.expectations]
        return expected if self.world.r.ledger.begun else ['its first turn']

    # -- private methods

    def _begin(self) -> None:
        try:
            with self._without_faults():
                self._main(self.world)
        except OSError as exc:  # for example, the port is not free yet
            self.world.note(f'process {self.name} cannot start: {exc}')
            self.kernel.down = RETRY
            self.kernel.die()
            raise Killed from None
        self.world.r.ledger.begun = True

    def _finish(self, r: Any) -> None:
        if not r.why_alive():  # otherwise the program has called `stop`
            r.oracles.check_over()
        r.oracles.check_turn(0)
        r.close()
        missing = self.missing()  # after `stop`, the end of the connections that `close` has aborted may be expected
        if missing:
            raise Violation(f'liveness: it has ended, but these events have not happened: {"; ".join(missing)}')
        r.oracles.check_closed()
        self.world.note(f'process {self.name} ends')
        self.kernel.die()
        self.world = None

    def _end_killed(self) -> None:
        if self.world is not None:
            self._die()
        if self.kernel.down is not None:
            self._host.at(self._host.time + int(self.kernel.down * 1e9), self._start_again)

    def _die(self) -> None:
        world, self.world = self.world, None
        self.kernel.die()
        violations = world.r.ledger.violations
        if violations:
            raise Violation(self._named('\n'.join(violations)))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Run a part of the process: its faults and violations are reported with its name."""
        faults = self._host.faults
        faults.on_strike, faults.key_of = self.kernel.struck, self.kernel.key_of
        self._running, self.kernel.mortal = True, self._kills
        try:
            yield
        except (Killed, KeyboardInterrupt):
            # An interrupt comes between two callbacks, so nothing is lost, and the process goes on.
            if self.kernel.dead:
                self._end_killed()
        except Violation as exc:
            raise Violation(self._named(str(exc))) from None
        finally:
            faults.on_strike, faults.key_of = self._host.struck, self._host.key_of
            self._running = self.kernel.mortal = False

    @contextmanager
    def _without_faults(self) -> Iterator[None]:
        faults = self._host.faults
        on, faults.on = faults.on, {}
        try:
            yield
        finally:
            faults.on = on

    def _start_again(self) -> None:
        if self.world is None:  # otherwise the program has started it
            self.start()

    def _named(self, text: str) -> str:
        return f'in the process {self.name}: {text}'
