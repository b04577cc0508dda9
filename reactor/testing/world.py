"""The world of a simulated program: its reactor, random decisions, expectations, failures and other processes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from .kernel import SimKernel
from .oracles import WatchedReactor
from .places import place_of_caller
from .processes import Partition, SimProcess
from .watched import Planted


class Expectation:
    """An event that must happen before the run ends."""

    def __init__(self, world: World, text: str) -> None:
        self._world = world
        self.text = text

    def met(self) -> None:
        """Record that the event has happened."""
        self._world.expectations.pop(self, None)


class World:
    """The object passed to each program: it has the reactor, and makes random decisions and failures.

    Attributes:
        r: The reactor.
        random: A seeded `random.Random` that only programs use.
        faulty: Whether faults may happen. Without faults, all bytes must arrive and all connections must end cleanly.
        has_unix: Whether there are Unix sockets.
        counts_tcp: Whether the system counts the bytes of connections, which `Limits(min_rate=...)` needs.
        name: The host name of `address()`. It has a second address, at which there is no listener.
        stops: How many times `run` has returned False. Without `until_stop`, the simulation then calls it again.
        kernel: The simulated system, as the program's process sees it.
        tls: SSL contexts for (servers, clients) if the programs use TLS, otherwise None.
    """

    tls: Any = None
    name = 'both.test'

    def __init__(self, simulation: Any, kernel: SimKernel, reactor: WatchedReactor, random: Random) -> None:
        self.r: Any = reactor
        self.random: Random = random
        self.faulty: bool = simulation.faulty
        self.has_unix: bool = kernel.kind != 'windows'
        self.counts_tcp: bool = kernel.counts_tcp
        self.stops = 0
        self.expectations: dict[Expectation, None] = {}
        self.kernel = kernel
        self._simulation = simulation

    def address(self) -> tuple[str, int]:
        """Return a host and a port at which there is no listener yet."""
        return '10.0.0.1', 1000 + next(self._simulation.places)

    def unix_path(self) -> str:
        """Return a path at which there is no socket yet."""
        return f'/run/{next(self._simulation.places)}.sock'

    def trouble(self, conn: Any = None) -> None:
        """Make trouble at random: send a signal, let time pass or raise an exception. Call this first in callbacks."""
        kernel = self.kernel
        kernel.throw_signals()
        if kernel.faults.falls('callback.slow'):
            kernel.busy(kernel.faults.drawn * 2)
        if kernel.faults.falls('callback.raises'):
            raise Planted('planted by the simulation')

    def expect(self, text: str) -> Expectation:
        """Expect an event before the end of the run; call `met()` on the returned object when the event happens."""
        expectation = Expectation(self, text)
        self.expectations[expectation] = None
        return expectation

    def always(self, fn: Callable[[], object], text: str = '') -> None:
        """Check a condition after every turn of the loop, from this turn on.

        Args:
            fn: Called without arguments after each turn. The run fails if it raises an exception, or returns a false
                value other than None. So it can be an expression, or a function with `assert` statements. It must not
                change the program.
            text: The condition in words, for the message. Without it, the message has the docstring or name of `fn`.
        """
        words = text or (fn.__doc__ or '').strip().partition('\n')[0] or getattr(fn, '__qualname__', repr(fn))
        self.r.oracles.conditions.append((fn, words))

    def fail(self, text: str) -> None:
        """Fail the run with this text after this turn: the program has seen something that must not happen.

        The method returns, and the callback goes on.
        """
        self.r.ledger.violations.append(f'{text} (world.fail at {place_of_caller(1)})')

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.kernel.note(text, -1)

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program."""
        self.kernel.raise_signal(signum)

    def process(self, main: Callable[[World], object], *, name: str | None = None, kills: bool = True) -> SimProcess:
        """Start another process on the same network, with its own reactor, descriptors and clock.

        It runs until its program ends, and no longer than the main program: this one ends the run. If the other process
        still expects events then, the run goes on until they have happened.

        Args:
            main: Called with a `World` of its own in the first turn of the process, at each start.
            name: The name in reports. None: the name of `main`.
            kills: Whether the fault `process.killed` may kill the process at any call to the system. It is then started
                again after up to 10 simulated seconds. False: only `SimProcess.kill` kills it.

        Returns:
            The process, which can be killed and started again.
        """
        process = SimProcess(self._simulation, main, name, kills)
        process.start()
        return process

    def partition(self, *processes: SimProcess) -> Partition:
        """Cut processes off from all others, the main process too, until `end()` of the returned object is called.

        They can still reach each other. Sent bytes wait, and arrive after the end, unless the connection has timed out
        before: after 15 minutes without an acknowledgement. Connects get no answer, and datagrams are lost. Unix
        sockets are not affected.
        """
        kernel = self._simulation.kernel
        self.note(f'a partition cuts off {", ".join(process.name for process in processes)}')
        return Partition(kernel, frozenset(process.index for process in processes))
