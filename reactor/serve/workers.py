"""The parent: starts workers, hears them, starts them again, replaces them, ends them.

Owns the slots, each with its listening sockets and the workers that come and go in it. Serves nobody itself. The rule:
a slot has at most two workers at a time, one that serves and one that starts or drains; and its sockets outlive both,
so who waits in their queues is served by whoever comes next.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque

from .. import DEVNULL, Process, Reactor, Stream, framing
from ..loop.log import log
from .doors import Door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .. import Timer

VARIABLE = 'REACTOR_WORKER'  # in the environment of a worker: its slot and its descriptors
STEADY = 1.0  # seconds that a worker has to serve to be replaced at once when it dies
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before one that lived shorter is started again, doubled each time
GRACE = 5.0  # seconds after its deadline in which a worker that drains may still go by itself
INTERRUPTED = 130


class Workers:
    """All workers, as `on_start` of `run` gets them: `stats()` and `pids()`."""

    def __init__(
        self, r: Reactor, command: list[str], doors: list[Door], deadline: float, start_timeout: float
    ) -> None:
        self.r = r
        self.command = command
        self.doors = doors
        self.start_timeout = start_timeout
        self.patience = deadline + GRACE
        self.status = 0
        self.slots: list[Slot] = []  # empty: all is to end
        self.leaving: set[Child] = set()
        self._round: deque[tuple[Slot, Child | None]] = deque()  # who is still to be replaced, in which slot
        self._again = False

    def stats(self) -> dict[str, dict[str, Any]]:
        """What the worker in each slot told last, at most a second ago: `Stats.as_dict()` and `'pid'`."""
        return {str(slot.number): slot.told for slot in self.slots if slot.told is not None}

    def pids(self) -> dict[str, int]:
        """The process that serves in each slot."""
        return {str(slot.number): slot.serving.process.pid for slot in self.slots if slot.serving is not None}

    def begin(self, count: int, on_start: Any) -> None:
        self.slots = [Slot(self, number) for number in range(count)]
        for slot in self.slots:
            slot.start()
        for name, fn in (
            ('SIGTERM', self.drain),
            ('SIGINT', self.interrupt),
            ('SIGHUP', self.reload),
            ('SIGTTIN', self.grow),
            ('SIGTTOU', self.shrink),
        ):
            self.r.add_signal_handler(getattr(signal, name), fn)
        if on_start is not None:
            on_start(self.r, self)

    def drain(self) -> None:
        """Have all workers drain and go."""
        while self.slots:
            self.slots.pop().remove()
        for door in self.doors:
            door.remove()
        self.go_on()

    def interrupt(self) -> None:
        """Drain, and when that was said already, end at once."""
        if self.slots:
            return self.drain()
        self.status = INTERRUPTED
        for child in self.leaving:
            child.process.kill()

    def grow(self) -> None:
        """One worker more."""
        if self.slots:
            self.slots.append(Slot(self, len(self.slots)))
            self.slots[-1].start()

    def shrink(self) -> None:
        """One worker less; the last one stays."""
        if len(self.slots) > 1:
            self.slots.pop().remove()
            self.go_on()

    def reload(self) -> None:
        """Replace all workers; what comes in the middle of that is one more round after it."""
        if self._round:
            self._again = True
            return
        self._round.extend((slot, slot.starting or slot.serving) for slot in self.slots)
        self.go_on()

    def give_up(self, slot: Slot) -> None:
        """A worker could not be started in this slot: if it was to replace another, leave the others as they are."""
        if self._round and self._round[0][0] is slot:
            self._round.clear()
            log('warning', 'the workers that were not replaced yet are kept; SIGHUP tries again')

    def go_on(self) -> None:
        """Called whenever something has changed: the next one to be replaced, or the end."""
        while self._round:
            slot, old = self._round[0]
            if slot in self.slots and slot.serving in (None, old):
                if slot.starting is None and not any(child.slot is slot for child in self.leaving):
                    slot.start()
                return
            self._round.popleft()
        if self._again:
            self._again = False
            self.reload()
        if not self.slots and not self.leaving:
            self.r.stop()


class Slot:
    """A place for one worker, and the sockets on which it listens."""

    def __init__(self, team: Workers, number: int) -> None:
        self.team = team
        self.number = number
        self.serving: Child | None = None
        self.starting: Child | None = None
        self.told: dict[str, Any] | None = None
        self._pause = 0.0
        self._restart: Timer | None = None
        self.listeners: list[Any] = []
        try:
            for door in team.doors:
                self.listeners.append(door.open())
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start a worker, now; it serves when it is ready, and then the one that serves until now drains."""
        if self._restart is not None:
            self._restart.cancel()
        try:
            self.starting = Child(self)
        except OSError as exc:
            self.on_failed(None, f'worker {self.number} cannot be started: {exc}')

    def on_ready(self, child: Child) -> None:
        old, self.serving, self.starting = self.serving, child, None
        if old is not None:
            old.leave(replaced=True)
        self.team.go_on()

    def on_failed(self, child: Child | None, what: str) -> None:
        """A worker has ended, or was not even started, though nobody told it to."""
        if child is not None and child is self.serving:
            self.serving = None
        else:
            self.starting = None
            self.team.give_up(self)
        steady = child is not None and child.ready and self.team.r.now - child.since >= STEADY
        self._pause = 0.0 if steady else min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        if self.serving is not None:
            log('warning', '%s; the one before goes on', what)
        elif self.starting is not None:
            log('warning', '%s; its successor is starting', what)
        else:
            log('warning', '%s; started again in %g s', what, self._pause)
            self._restart = self.team.r.call_later(self._pause, self.start)
        self.team.go_on()

    def remove(self) -> None:
        """Have its worker take who waits, drain and go.

        Our copies of its sockets are closed now and the worker's when their queues are empty: only then does the
        system take them out of the group that shares the port.
        """
        if self._restart is not None:
            self._restart.cancel()
        for child in self.serving, self.starting:
            if child is not None:
                child.leave()
        self.serving = self.starting = None
        self.close()

    def close(self) -> None:
        for door, sock in zip(self.team.doors, self.listeners, strict=False):
            door.close(sock)


class Child:
    """One worker process, from its start to its end."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.team = team = slot.team
        self.ready = False
        self.since = team.r.now
        ours, theirs = socket.socketpair()
        self.control: Stream = team.r.adopt(ours, framing.lines(self.on_line))
        numbers = [sock.fileno() for sock in slot.listeners]
        told = json.dumps({'slot': slot.number, 'control': theirs.fileno(), 'listeners': numbers})
        try:
            self.process: Process = team.r.spawn(
                team.command,
                stdin=DEVNULL,
                on_exit=self.on_exit,
                env={**os.environ, VARIABLE: told},
                pass_fds=[theirs, *numbers],
            )
        except BaseException:
            self.control.abort()
            raise
        finally:
            theirs.close()
        self._timer = team.r.call_later(team.start_timeout, self.on_late, 'is not ready', team.start_timeout)

    def on_line(self, conn: Stream, line: bytes) -> None:
        told = json.loads(line)
        if self is self.slot.starting:
            self.ready, self.since = True, self.team.r.now
            self._timer.cancel()
            self.slot.on_ready(self)
        if self is self.slot.serving:
            self.slot.told = told

    def leave(self, replaced: bool = False) -> None:
        """Have it drain and go, with its successor on the same sockets or as the last one there."""
        team = self.team
        team.leaving.add(self)
        self._timer.cancel()
        self._timer = team.r.call_later(team.patience, self.on_late, 'has not ended', team.patience)
        if replaced and not self.control.closed:
            self.control.write(b'{"replaced": true}\n')
        else:
            self.process.terminate()

    def on_late(self, what: str, seconds: float) -> None:
        log('warning', '%s %s after %g s and is killed', self, what, seconds)
        if self in self.team.leaving:
            self.team.status = 1
        self.process.kill()

    def on_exit(self, process: Process, code: int | None, signum: int | None) -> None:
        self._timer.cancel()
        self.control.abort()
        if self in self.team.leaving:
            self.team.leaving.discard(self)
            self.team.go_on()
            return
        how = f'exit code {code}' if signum is None else f'signal {signum}'
        self.slot.on_failed(self, f'{self} ended unasked, {how}')

    def __str__(self) -> str:
        return f'worker {self.slot.number} (pid {self.process.pid})'
