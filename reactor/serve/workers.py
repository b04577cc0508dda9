"""The parent: starts workers, hears them, starts them again, replaces them, ends them.

Owns the slots, each with its listening sockets and the workers that come and go in it, and serves nobody. The rule: a
slot has at most two workers at a time, one that serves and one that starts or drains; and its sockets outlive them, so
that who waits in the queue is served by whoever comes next.

That holds as long as the next worker is sure to come soon. The kernel divides clients among all sockets that listen on
the port, whether a worker reads them or not. So while a slot waits to start its worker again after a failure, and
another slot serves, its sockets are closed, and clients reach the workers that live.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import DEVNULL, Process, Reactor, Stream, framing
from ..loop.log import log
from . import systemd
from .addresses import ListenAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import Timer

VARIABLE = 'REACTOR_WORKER'  # in the environment of a worker: its slot and its descriptors
STEADY = 1.0  # seconds that a worker has to serve to be replaced at once when it dies
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before one that served less is started again; doubled each time
GRACE = 2.0  # seconds after the drain timeout in which a worker may still go by itself
REPORTS_EVERY = 1.0  # seconds between two reports of a worker, and between two looks at who is silent
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def folder() -> str | None:
    """The current directory of this process, None when that was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


BEGAN_IN = folder()  # where a path in the command is meant; the program may go elsewhere, and a worker goes there, too


class Workers:
    """All workers, as `on_start` of `run` gets them.

    addresses  where they listen, in the order of `listen`: (host, port, ...) or a path

    What the signals do, `drain`, `replace`, `grow` and `shrink` do as well: a handler of your own may call them.
    """

    def __init__(
        self,
        r: Reactor,
        argv: list[str],
        listen_addresses: list[ListenAddress],
        drain_timeout: float,
        start_timeout: float,
        hang_timeout: float | None,
    ) -> None:
        self.r = r
        self.argv = argv
        self.listen_addresses = listen_addresses
        self.patience: float = drain_timeout + GRACE
        self.start_timeout = start_timeout
        self.hang_timeout = hang_timeout
        self.addresses: list[Any] = []
        self.status: int = 0
        self.slots: list[Slot] = []  # none: it ends
        self.leaving: set[WorkerProcess] = set()
        self._round: deque[tuple[Slot, WorkerProcess | None]] = deque()  # who is still to be replaced
        self._another_round = False
        self._told_manager: Callable[[], bool] | None = None

    def stats(self) -> dict[str, dict[str, Any]]:
        """What who serves in each slot told last, a second ago at most: `Stats.as_dict()` and its `'pid'`."""
        return {str(slot.number): slot.told for slot in self.slots if slot.told}

    def pids(self) -> dict[str, int]:
        """Which process serves in each slot; a slot is missing while its worker starts."""
        return {str(slot.number): slot.serving.process.pid for slot in self.slots if slot.serving}

    def begin(self, count: int, on_start: Any) -> None:
        """Called by `run`, once: start so many, and hear the signals."""
        # One listens from the start, and clients wait in its queue. The others listen when their workers do.
        self.slots = [Slot(self, number, listening=not number) for number in range(count)]
        self.addresses = [sock.getsockname() for sock in self.slots[0].listeners]
        self.r.add_signal_handler(signal.SIGTERM, self.drain)
        self.r.add_signal_handler(signal.SIGINT, self.interrupt)
        self.r.add_signal_handler(signal.SIGHUP, self.replace)
        self.r.add_signal_handler(signal.SIGTTIN, self.grow)
        self.r.add_signal_handler(signal.SIGTTOU, self.shrink)
        for slot in self.slots:
            slot.start()
        if self.hang_timeout is not None:
            self.r.call_every(REPORTS_EVERY, self.look).unref()
        systemd.watchdog(self.r)
        if on_start is not None:
            on_start(self.r, self)

    def drain(self) -> None:
        """Have all workers drain and go."""
        while self.slots:
            self.slots.pop().remove()
        for address in self.listen_addresses:
            address.close()
        self.go_on()

    def interrupt(self) -> None:
        """Drain; or, when that was said before, end at once."""
        if self.slots:
            return self.drain()
        self.status = INTERRUPTED
        for child in self.leaving:
            child.process.kill()

    def grow(self) -> None:
        """One worker more, which listens itself: nobody is to wait for it while others serve."""
        if self.slots:
            self.slots.append(Slot(self, len(self.slots), listening=False))
            self.slots[-1].start()

    def shrink(self) -> None:
        """One worker less; the last one stays."""
        if len(self.slots) > 1:
            self.slots.pop().remove()
            self.go_on()

    def replace(self) -> None:
        """Replace all workers. However often it is said in the meantime, one more round follows."""
        self._another_round = bool(self._round)
        if not self._round:
            self._round.extend((slot, slot.starting or slot.serving) for slot in self.slots)
            self.go_on()

    def give_up(self, slot: Slot) -> None:
        """No worker could be started in this slot: if it was to replace another, the rest is left as it is."""
        if self._round and self._round[0][0] is slot:
            self._round.clear()

    def look(self) -> None:
        """Called every second: a worker that serves and has been silent for `hang_timeout` is killed."""
        for slot in self.slots:
            if slot.serving is not None:
                slot.serving.count_silence()

    def serves(self) -> bool:
        """Whether a worker serves."""
        return any(slot.serving is not None for slot in self.slots)

    def go_on(self) -> None:
        """Called when something has changed: the next one is replaced, or it ends."""
        serves = self.serves()
        for slot in self.slots:
            slot.attract(not serves)
        if not self._replacing():
            if self._another_round:
                self.replace()
            if not self.slots and not self.leaving:
                self.r.stop()
        self._tell_manager()

    def _replacing(self) -> bool:
        while self._round:
            slot, old = self._round[0]
            if slot in self.slots and slot.serving in (None, old):
                if not slot.starting and all(child.slot is not slot for child in self.leaving):
                    slot.start()
                return True
            self._round.popleft()
        return False

    def _tell_manager(self) -> None:
        tell = self._told_manager
        if not self.slots:
            tell = systemd.stopping
        elif self._round:
            tell = systemd.reloading
        elif all(slot.serving for slot in self.slots):
            tell = systemd.ready
        if tell is not None and tell is not self._told_manager:
            self._told_manager = tell
            tell()


class Slot:
    """The place of one worker, and the sockets on which it listens."""

    def __init__(self, team: Workers, number: int, listening: bool = True) -> None:
        self.team = team
        self.number = number
        self.listeners: list[Any] = []
        self._open(listening)
        self.serving: WorkerProcess | None = None
        self.starting: WorkerProcess | None = None
        self.told: dict[str, Any] = {}
        self._pause = 0.0
        self._restart: Timer | None = None

    def start(self) -> None:
        """Start a worker. It serves when it is ready, and who has served until then drains."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        try:
            self._open(listening=False)  # its worker listens when it can serve
            self.starting = WorkerProcess(self)
        except OSError as exc:
            self.on_failed(None, f'worker {self.number} cannot be started: {exc}')

    def on_ready(self, child: WorkerProcess) -> None:
        old, self.serving, self.starting = self.serving, child, None
        if old is not None:
            old.leave(replaced=True)
        self.team.go_on()

    def on_failed(self, child: WorkerProcess | None, what: str) -> None:
        """A worker has ended, or did not even start, and nobody has told it to."""
        if child is not None and child is self.serving:
            self.serving = None
            self.told = {}
        else:
            self.starting = None
            self.team.give_up(self)
        steady = child is not None and child.ready and self.team.r.now - child.since >= STEADY
        self._pause = 0.0 if steady else min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        if self.serving or self.starting:
            log('warning', '%s; %s %s', what, self.serving or self.starting, 'goes on' if self.serving else 'follows')
        else:
            log('warning', '%s; started again in %g s', what, self._pause)
            self._restart = self.team.r.call_later(self._pause, self.start)
        self.team.go_on()

    def attract(self, wanted: bool) -> None:
        """While it waits to be started again after a failure: whether clients are to wait in the queues of its sockets.

        Those that wait in them already are reset when it is not wanted.
        """
        if self._restart is None or not self._pause:
            return
        if not wanted:
            self._close()
        elif not self.listeners:
            try:
                self._open(listening=True)
            except OSError:
                self._close()  # the next start tries it again, and reports it

    def _open(self, listening: bool) -> None:
        for address in self.team.listen_addresses[len(self.listeners) :]:
            self.listeners.append(address.socket_for_worker(listening))

    def _close(self) -> None:
        for address, sock in zip(self.team.listen_addresses, self.listeners, strict=False):
            address.close(sock)
        self.listeners = []

    def remove(self) -> None:
        """Have its worker drain and go.

        Our copies of its sockets are closed now and the worker's when nobody waits in their queues: not before does
        the system take them out of the group that shares the port.
        """
        if self._restart is not None:
            self._restart.cancel()
        for child in self.serving, self.starting:
            if child is not None:
                child.leave()
        self.serving = self.starting = None
        self._close()


class WorkerProcess:
    """One process, from its start to its end."""

    team: Workers

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.team = team = slot.team
        self.ready: bool = False
        self.since: float = team.r.now
        self.silence: float = 0.0  # seconds without a report, as the parent counts them while it runs itself
        ours, theirs = socket.socketpair()
        self.control: Stream = team.r.adopt(ours, framing.lines(self.on_line))
        numbers = [theirs.fileno(), *(sock.fileno() for sock in slot.listeners)]
        shared = [address.shared.fileno() for address in team.listen_addresses if address.shared is not None]
        told = {'slot': slot.number, 'control': numbers[0], 'listeners': numbers[1:], 'shared': shared}
        ours_alone = (VARIABLE, *systemd.VARIABLES)
        env = {name: value for name, value in os.environ.items() if name not in ours_alone}
        env[VARIABLE] = json.dumps(told)
        try:
            self.process: Process = team.r.spawn(
                team.argv, stdin=DEVNULL, env=env, pass_fds=numbers, on_exit=self.on_exit,
                cwd=None if folder() == BEGAN_IN else BEGAN_IN,
            )  # fmt: skip
        except BaseException:
            self.control.abort()
            raise
        finally:
            theirs.close()
        self._timer = team.r.call_later(team.start_timeout, self.on_late, 'is not ready', team.start_timeout)

    def on_line(self, conn: Stream, line: bytes) -> None:
        figures, draining = json.loads(line)
        self.silence = 0.0
        slot = self.slot
        if not self.ready:
            self.ready, self.since = True, self.team.r.now
            if self in self.team.leaving:
                self.process.terminate()
            else:
                self._timer.cancel()
                slot.on_ready(self)
        if self is slot.serving:
            slot.told = figures
            if draining and slot.starting is None:  # its own idea, or somebody's who knows only its number
                slot.start()

    def count_silence(self) -> None:
        """Called every second while it serves.

        Seconds are counted and not measured: when the parent was stopped for a while (Ctrl-Z), its workers were, too.
        The first one that is counted may have been shorter, so the limit has to be exceeded.
        """
        before, self.silence = self.silence, self.silence + REPORTS_EVERY
        limit = self.team.hang_timeout
        assert limit is not None
        if before <= limit < self.silence:
            log(
                'warning',
                '%s has not reported for %g s: its loop stands still; it is killed in %g s unless it reports; '
                'if its callbacks may take so long, raise hang_timeout',
                self,
                limit,
                GRACE,
            )
        elif self.silence > limit + GRACE:
            log('warning', '%s has not reported for %g s and is killed', self, limit + GRACE)
            self.process.kill()

    def leave(self, replaced: bool = False) -> None:
        """Have it drain and go; `replaced` by another one on the same sockets, or as the last one there."""
        team = self.team
        team.leaving.add(self)
        self._timer.cancel()
        self._timer = team.r.call_later(team.patience, self.on_late, 'has not ended', team.patience)
        if not self.control.closed:
            self.control.write(b'"replaced"\n' if replaced else b'"last"\n')
        if not replaced and (self.ready or self.slot.serving):  # else people wait, whom nobody but this one will serve
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
        else:
            how = f'signal {signum}' if code is None else f'exit code {code}'
            self.slot.on_failed(self, f'{self} ended unasked ({how})')

    def __repr__(self) -> str:
        return f'worker {self.slot.number} (pid {self.process.pid})'
