"""Two or three owners of resources of which a process has only one: signal handlers and Python's wakeup descriptor.

A cell is one test case: an order in which owners of some kinds begin and end, nested or not. Many cells run in one
child process. After each step of a cell:

- a signal reaches every living reactor that has the handler or shares it with the owner on top. It reaches no other
  owner, and it wakes each of these reactors;
- the installed handler belongs to an owner that is alive, or was put there by an owner that is not a reactor;
- a wakeup descriptor that does not belong to a reactor receives the bytes of its signals, and no other descriptor
  receives any. To check this, each descriptor number that becomes free is given to another file at once;
- in a forked process, a signal does what it would do without any reactor.

The expectations are computed here, from the design: an owner restores the previous handler only if its own is still
installed, and a closed reactor's handler behaves like the one it replaced. `tests/reference/asyncio_owner.py` adds
asyncio, in a separate process. `python -m tests.helpers.owners 3 all SIGUSR1+base SIGUSR1+inside` runs all cells of
three owners, once with a handler that was installed before them, and once in a callback of a running reactor.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from typing import Any

from reactor import Reactor

PATIENCE = 5.0  # seconds, for events that should happen at once


class Wrong(Exception):
    """Raised when a check of a cell fails."""


class Owner:
    """Something that has a signal's handler, the wakeup descriptor, or both, from `begin` to `end`."""

    by_byte = False  # whether this owner notices signals only through the wakeup descriptor, like asyncio
    handles = True  # whether this owner has a handler for the signal
    wakes = True  # whether this owner has the wakeup descriptor
    is_reactor = False

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.heard = 0
        self.alive = False
        self.below: Any = None  # the owner of the previous handler, according to the cell
        self.below_fd: Any = None

    def note(self, *args: Any) -> None:
        self.heard += 1

    def turn(self) -> None:
        """Process a wakeup."""

    def bytes_waiting(self) -> bytes:
        return b''


class OfReactor(Owner):
    is_reactor = True

    def begin(self) -> None:
        self.r = Reactor()
        self.handler = self.r.add_signal_handler(self.cell.signum, self.note)

    def end(self) -> None:
        self.r.close()

    def fileno(self) -> int:
        return self.r._wakeup.bell_fileno()

    def turn(self) -> None:
        began = time.monotonic()
        self.r.run_once(PATIENCE)
        self.r.run_once(0)
        if time.monotonic() - began > PATIENCE / 2:
            raise Wrong(f'{self} sleeps although its signal was raised')


class Outer(OfReactor):
    """A reactor without a handler; all other owners begin and end in one of its callbacks."""

    handles = False

    def run(self, fn: Any) -> None:
        self.r = Reactor(catch_errors=False)
        self.alive = True
        try:
            self.r.call_soon(fn)
            self.r.run()
        finally:
            self.r.close()


class Removed(OfReactor):
    """A reactor that removes its handler, and is closed at the end of the cell."""

    def end(self) -> None:
        self.r.clear_signal_handlers()
        self.cell.later.append(self.r.close)


class InThread(OfReactor):
    """A reactor that runs in another thread."""

    def begin(self) -> None:
        super().begin()
        self.thread = threading.Thread(target=self.r.run, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.r.call_soon_threadsafe(self.r.stop)
        self.thread.join()
        self.r.close()

    def turn(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.heard and time.monotonic() < end:
            time.sleep(0.0002)


class Plain(Owner):
    """A program that calls `signal.signal`, and at its end restores the old handler, whatever is installed then."""

    wakes = False

    def begin(self) -> None:
        self.found = signal.signal(self.cell.signum, self.note)

    def end(self) -> None:
        signal.signal(self.cell.signum, self.found)


class Ringing(Owner):
    """A program with a wakeup descriptor; it restores the old one if its own is still installed."""

    handles = False

    def begin(self) -> None:
        self.bell, self.sock = socket.socketpair()
        self.bell.setblocking(False)
        self.sock.setblocking(False)
        self.found = signal.set_wakeup_fd(self.bell.fileno(), warn_on_full_buffer=False)

    def end(self) -> None:
        self.take_away()
        self.bell.close()
        self.sock.close()

    def take_away(self) -> None:
        found = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self.cell.restored_fd(self), warn_on_full_buffer=False) if found == self.fileno() else (
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        )

    def fileno(self) -> int:
        return self.bell.fileno()

    def bytes_waiting(self) -> bytes:
        return read(self.sock)


class Silencing(Ringing):
    """A program that ends with `set_wakeup_fd(-1)`, whatever is installed then."""

    def take_away(self) -> None:
        signal.set_wakeup_fd(-1)


KINDS = {cls.__name__: cls for cls in (OfReactor, Removed, InThread, Plain, Ringing, Silencing)}
DEFAULT = 'the default'
BASE = 'the base'


class Cell:
    """One order in which owners begin and end, and what must be installed after each step."""

    def __init__(self, signum: int, base: bool, inside: bool, kinds: list[type[Owner]], order: tuple[int, ...]) -> None:
        self.signum = signum
        self.base = BASE if base else DEFAULT
        self.base_heard = 0
        self.owners = [kind(self) for kind in kinds]
        self.order = order
        self.installed: Any = self.base
        self.outer = Outer(self) if inside else None
        self.installed_fd: Any = self.outer
        self.later: list[Any] = []
        self.canaries: list[socket.socket] = []
        self.steps: list[str] = []

    def __repr__(self) -> str:
        return ', '.join(self.steps)

    def run(self, forks: random.Random) -> None:
        if self.outer is None:
            self.play(forks)
        else:
            self.outer.run(functools.partial(self.play, forks))

    def play(self, forks: random.Random) -> None:
        before = signal.getsignal(self.signum)
        if self.base is BASE:
            signal.signal(self.signum, self.note_base)
        at_start = signal.getsignal(self.signum)
        try:
            fork_at = forks.randrange(4 * len(self.order))  # forks are slow, so not every cell has one
            for at, number in enumerate(self.order):
                self.step(self.owners[number])
                self.check()
                if at == fork_at:
                    self.check_fork()
            if all(owner.is_reactor for owner in self.owners):
                if signal.getsignal(self.signum) != at_start:
                    raise Wrong(f'{signal.getsignal(self.signum)} is left installed')
        finally:
            for do in self.later:
                do()
            for canary in self.canaries:
                canary.close()
            if self.outer is None:
                signal.set_wakeup_fd(-1)
            signal.signal(self.signum, before)

    def note_base(self, *args: Any) -> None:
        self.base_heard += 1

    def step(self, owner: Owner) -> None:
        if not owner.alive:
            self.steps.append(f'{name(owner)} begins')
            owner.begin()
            owner.alive = True
            if owner.handles:
                owner.below, self.installed = self.installed, owner
            if owner.wakes:
                owner.below_fd, self.installed_fd = self.installed_fd, owner
            return
        self.steps.append(f'{name(owner)} ends')
        mine = owner.fileno() if owner.wakes else -1
        owner.end()
        owner.alive = False
        if owner.handles:
            self.end_handler(owner)
        if owner.wakes:
            self.end_wakeup(owner)
            self.take(mine)

    def end_handler(self, owner: Owner) -> None:
        if owner.by_byte:
            self.installed = DEFAULT
        elif not owner.is_reactor:
            self.installed = owner.below
        elif self.installed is owner:
            self.installed = alive(owner.below)

    def end_wakeup(self, owner: Owner) -> None:
        if isinstance(owner, Silencing):
            self.installed_fd = None
        elif self.installed_fd is owner and not owner.is_reactor:
            self.installed_fd = owner.below_fd if owner.below_fd is not None and owner.below_fd.alive else None
        elif self.installed_fd is owner:
            self.installed_fd = self.alive_fd(owner.below_fd)
        elif self.installed_fd is None and owner.is_reactor:
            below = self.alive_fd(owner.below_fd)
            self.installed_fd = below if below is not None and below.is_reactor else None

    def alive_fd(self, owner: Any) -> Any:
        while owner is not None and not owner.alive:
            if not owner.is_reactor:
                return None  # when this owner ended, it closed its descriptor, so nothing is restored
            owner = owner.below_fd
        return owner

    def restored_fd(self, owner: Owner) -> int:
        below = owner.below_fd
        return below.fileno() if below is not None and below.alive else -1

    def take(self, number: int) -> None:
        """Let an unrelated connection take a descriptor number that has become free."""
        for _ in range(64):
            try:
                os.fstat(number)
                return
            except OSError:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                theirs.setblocking(False)
                self.canaries += ours, theirs

    # -- checks

    def check(self) -> None:
        self.check_wakeup()
        for owner in self.owners:
            owner.bytes_waiting() if owner.alive else None
            owner.heard = 0
        self.base_heard = 0
        expected = self.expected(alive(self.installed))
        if expected == [DEFAULT]:
            self.check_default()
        else:
            signal.raise_signal(self.signum)
            for owner in expected:
                if owner is not BASE and owner.alive:
                    owner.turn()
        for owner in [*self.owners, BASE]:
            heard = bool(self.base_heard if owner is BASE else owner.heard)
            if owner is not BASE and owner.by_byte:
                continue
            if heard != (owner in expected):
                raise Wrong(f'{name(owner)} {"received a foreign signal" if heard else "did not receive the signal"}')
        self.check_bytes(expected != [DEFAULT])
        self.check_wakeup()

    def expected(self, top: Any) -> list[Any]:
        """Return the owners that must receive the signal."""
        hears = [top]
        while isinstance(top, Owner) and top.is_reactor:
            top = alive(top.below)
            if not (isinstance(top, Owner) and top.is_reactor):
                break
            hears.append(top)
        return hears

    def check_wakeup(self) -> None:
        found = signal.set_wakeup_fd(-1)
        if found >= 0:
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        owner = self.installed_fd
        expected = -1 if owner is None else owner.fileno()
        if found == expected:
            return
        # A reactor that is alive may install its own descriptor again if none is installed.
        if found >= 0 and owner is None:
            reactors = [each for each in (self.outer, *self.owners) if each is not None and each.is_reactor]
            again = [each for each in reactors if each.alive and each.fileno() == found]
            if again:
                self.installed_fd = again[0]
                return
        raise Wrong(f'the wakeup descriptor is {found}, but should be {expected}, which belongs to {name(owner)}')

    def check_bytes(self, raised: bool) -> None:
        for canary in self.canaries:
            data = read(canary)
            if data:
                raise Wrong(f'an unrelated connection received {data!r}')
        top = self.alive_fd(self.installed_fd)
        while top is not None and top.is_reactor:
            if not raised or isinstance(top, InThread | Outer):
                return
            top.r.run_once(0)
            top = self.alive_fd(top.below_fd)
        for owner in self.owners:
            if owner.alive and isinstance(owner, Ringing):
                got = owner.bytes_waiting()
                if owner is top and raised and bytes((self.signum,)) not in got:
                    raise Wrong(f'{name(owner)} did not get the byte of its signal')

    def check_default(self) -> None:
        """Check in a forked copy that the signal has its default action: it must kill the copy.

        Skipped while a reactor is alive, because its fork hook would release the signal in the copy.
        """
        installed = signal.getsignal(self.signum)
        if installed is signal.SIG_DFL or any(owner.alive and owner.is_reactor for owner in self.owners):
            return
        self.expect_in_fork(lambda: signal.raise_signal(self.signum), -self.signum)

    def check_fork(self) -> None:
        """Check that in a forked copy no reactor owns anything."""
        top, fd = self.installed, self.installed_fd
        while isinstance(top, Owner) and top.is_reactor:
            top = top.below
        while fd is not None and fd.is_reactor:
            fd = fd.below_fd
        expected_fd = fd.fileno() if fd is not None and fd.alive else -1

        def in_fork() -> None:
            for owner in self.owners:
                owner.heard = 0
            self.base_heard = 0
            found = signal.set_wakeup_fd(-1)
            if found not in (-1, expected_fd):
                os._exit(3)
            if top is DEFAULT:
                signal.raise_signal(self.signum)
                os._exit(4)
            signal.raise_signal(self.signum)
            heard = [owner for owner in self.owners if owner.heard] + [BASE] * bool(self.base_heard)
            os._exit(0 if heard == ([] if isinstance(top, Owner) and top.by_byte else [top]) else 5)

        self.expect_in_fork(in_fork, -self.signum if top is DEFAULT else 0)

    def expect_in_fork(self, fn: Any, expected: int) -> None:
        pid = os.fork()
        if not pid:
            try:
                fn()
            finally:
                os._exit(6)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != expected:
            why = {3: 'the wakeup descriptor of a reactor is installed', 4: 'the signal did not end the process'}
            raise Wrong(f'in a fork: {why.get(status, "the signal went to a handler")} ({status}, not {expected})')


def alive(owner: Any) -> Any:
    """Return the owner, or, if it is a closed reactor, the first owner below it that is not."""
    while isinstance(owner, Owner) and owner.is_reactor and not owner.alive:
        owner = owner.below
    return owner


def name(owner: Any) -> str:
    return f'{type(owner).__name__} {owner.cell.owners.index(owner)}' if isinstance(owner, Owner) else str(owner)


def read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b''


def orders(count: int) -> list[tuple[int, ...]]:
    """Return all orders in which `count` owners can begin and end: each owner occurs twice, first for its beginning."""
    return sorted(set(itertools.permutations([*range(count)] * 2)))


def run_cells(cells: list[tuple[Any, ...]], signums: tuple[str, ...]) -> list[str]:
    """Run cells in this process; returns a line for each failure."""
    wrong = []
    forks = random.Random(1)
    for kinds, order in cells:
        for signum in signums:
            named, *how = signum.split('+')
            cell = Cell(getattr(signal, named), 'base' in how, 'inside' in how, list(kinds), order)
            try:
                cell.run(forks)
            except Exception as exc:
                wrong.append(f'{signum}: {cell}: {exc if isinstance(exc, Wrong) else repr(exc)}')
    return wrong


def cells_of(count: int, sample: int | None, wanted: Any = lambda kinds: True) -> list[tuple[Any, ...]]:
    """Return all cells with `count` owners, or a fixed sample of them."""
    kinds = [each for each in itertools.product(KINDS.values(), repeat=count) if wanted(each)]
    cells = [(each, order) for each in kinds for order in orders(count)]
    return cells if sample is None or sample >= len(cells) else random.Random(count).sample(cells, sample)


def main(wanted: Any = lambda kinds: True) -> None:
    count, sample, *signums = sys.argv[1:]
    warnings.filterwarnings('ignore', '.*multi-threaded, use of fork', DeprecationWarning)
    cells = cells_of(int(count), None if sample == 'all' else int(sample), wanted)
    began = time.monotonic()
    wrong = run_cells(cells, tuple(signums))
    print(f'{len(cells) * len(signums)} cells, {len(wrong)} wrong, {time.monotonic() - began:.1f} s')
    for line in wrong:
        print(line)


if __name__ == '__main__':
    main()
