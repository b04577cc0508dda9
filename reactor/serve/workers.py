"""The parent process, which starts, restarts, replaces and stops the workers.

Each worker has a slot. A slot owns listening sockets and has at most two workers at a time: one that serves, and one
that is starting or draining. The sockets of a slot stay open when a worker exits, so the next worker serves the
connections in their queues.

There is one exception. The kernel distributes connections among all sockets that listen on the port, even if no worker
accepts from them. So while a slot waits to restart its worker after a failure and another slot serves, the sockets of
the waiting slot are closed, and new connections reach the workers that are alive.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import DEVNULL, Process, Reactor, Stream, Timer, framing
from ..loop.log import log
from . import systemd
from .addresses import ListenAddress

VARIABLE = 'REACTOR_WORKER'  # environment variable of a worker, with its slot and its descriptors
STEADY = 1.0  # seconds: a worker that dies after serving this long is restarted without a pause
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds until a worker that died sooner is restarted; doubled each time
GRACE = 2.0  # seconds from the drain timeout, or from the warning about a hung worker, until the worker is killed
REPORTS_EVERY = 1.0  # seconds between two reports of a worker, and between two checks for silent workers
INTERRUPTED = 130  # the exit status that a shell reports for a program ended by Ctrl-C


def folder() -> str | None:
    """Return the current directory of this process, or None if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


BEGAN_IN = folder()  # the base of relative paths in the command, even if the program changes its directory later


class Workers:
    """All workers; `run` passes it to `on_start`.

    `drain`, `replace`, `grow` and `shrink` have the same effect as the signals, and can be called by the program.

    Attributes:
        addresses: The addresses that the workers listen on, in the order of `listen`: (host, port, ...) or a path.
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
        self.slots: list[Slot] = []  # empty during shutdown
        self.leaving: set[WorkerProcess] = set()
        self._round: deque[tuple[Slot, WorkerProcess | None]] = deque()  # (slot, worker to replace)
        self._another_round = False
        self._notified: Callable[[], bool] | None = None  # the last function that notified systemd

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the latest counters of each worker that serves; they are at most a second old.

        This method is a source for `reactor.observe`.

        Returns:
            A dict that maps the number of each slot to `Stats.as_dict()` with `'pid'` added.
        """
        return {str(slot.number): slot.counters for slot in self.slots if slot.counters}

    def pids(self) -> dict[str, int]:
        """Return the process id of the serving worker for each slot. Slots without a serving worker are left out."""
        return {str(slot.number): slot.serving.process.pid for slot in self.slots if slot.serving}

    def begin(self, count: int, on_start: Any) -> None:
        """Called once by `run`: start `count` workers and handle signals."""
        # The first socket listens at once, so that clients can wait in its queue. The others listen when their workers
        # are ready.
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
            self.r.call_every(REPORTS_EVERY, self.check_silence).unref()
        systemd.watchdog(self.r)
        if on_start is not None:
            on_start(self.r, self)

    def drain(self) -> None:
        """Have all workers drain and exit."""
        while self.slots:
            self.slots.pop().remove()
        for address in self.listen_addresses:
            address.close()
        self.go_on()

    def interrupt(self) -> None:
        """Have all workers drain and exit. If they are already draining, kill them."""
        if self.slots:
            return self.drain()
        self.status = INTERRUPTED
        for child in self.leaving:
            child.process.kill()

    def grow(self) -> None:
        """Add a worker. Its socket listens only when the worker is ready, so that no client waits for its start."""
        if self.slots:
            self.slots.append(Slot(self, len(self.slots), listening=False))
            self.slots[-1].start()

    def shrink(self) -> None:
        """Remove a worker, except the last one."""
        if len(self.slots) > 1:
            self.slots.pop().remove()
            self.go_on()

    def replace(self) -> None:
        """Replace all workers, one after another. All calls during a round together cause one more round."""
        self._another_round = bool(self._round)
        if not self._round:
            self._round.extend((slot, slot.starting or slot.serving) for slot in self.slots)
            self.go_on()

    def give_up(self, slot: Slot) -> None:
        """Called when a worker failed to start in `slot`. If it was a replacement, cancel the rest of the round."""
        if self._round and self._round[0][0] is slot:
            self._round.clear()

    def check_silence(self) -> None:
        """Called every second: look for workers that do not report, see `count_silence`."""
        for slot in self.slots:
            if slot.serving is not None:
                slot.serving.count_silence()

    def serves(self) -> bool:
        """Return whether any worker serves."""
        return any(slot.serving is not None for slot in self.slots)

    def go_on(self) -> None:
        """Called after each change: replace the next worker, or stop the loop if all workers have exited."""
        serves = self.serves()
        for slot in self.slots:
            slot.listen_while_waiting(not serves)
        if not self._replacing():
            if self._another_round:
                self.replace()
            if not self.slots and not self.leaving:
                self.r.stop()
        self._notify_manager()

    def _replacing(self) -> bool:
        while self._round:
            slot, old = self._round[0]
            if slot in self.slots and slot.serving in (None, old):
                if not slot.starting and all(child.slot is not slot for child in self.leaving):
                    slot.start()
                return True
            self._round.popleft()
        return False

    def _notify_manager(self) -> None:
        notify = self._notified
        if not self.slots:
            notify = systemd.stopping
        elif self._round:
            notify = systemd.reloading
        elif all(slot.serving for slot in self.slots):
            notify = systemd.ready
        if notify is not None and notify is not self._notified:
            self._notified = notify
            notify()


class Slot:
    """The place of one worker: its listening sockets, and the processes that use them."""

    def __init__(self, team: Workers, number: int, listening: bool = True) -> None:
        self.team = team
        self.number = number
        self.listeners: list[Any] = []
        self._open(listening)
        self.serving: WorkerProcess | None = None
        self.starting: WorkerProcess | None = None
        self.counters: dict[str, Any] = {}  # the latest counters reported by the serving worker
        self._pause = 0.0
        self._restart: Timer | None = None

    def start(self) -> None:
        """Start a worker. When it is ready, it takes over, and the worker that served until then drains."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        try:
            self._open(listening=False)  # the worker itself calls listen() when it is ready
            self.starting = WorkerProcess(self)
        except OSError as exc:
            self.on_failed(None, f'cannot start worker {self.number}: {exc}')

    def on_ready(self, child: WorkerProcess) -> None:
        old, self.serving, self.starting = self.serving, child, None
        if old is not None:
            old.leave(replaced=True)
        self.team.go_on()

    def on_failed(self, child: WorkerProcess | None, what: str) -> None:
        """Called when a worker could not be started, or has exited although it was not asked to."""
        if child is not None and child is self.serving:
            self.serving = None
            self.counters = {}
        else:
            self.starting = None
            self.team.give_up(self)
        steady = child is not None and child.ready and self.team.r.now - child.since >= STEADY
        self._pause = 0.0 if steady else min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        if self.serving or self.starting:
            log(
                'warning', '%s; %s %s', what, self.serving or self.starting, 'serves' if self.serving else 'is starting'
            )
        else:
            log('warning', '%s; restarting in %g s', what, self._pause)
            self._restart = self.team.r.call_later(self._pause, self.start)
        self.team.go_on()

    def listen_while_waiting(self, wanted: bool) -> None:
        """Open or close the listening sockets while the slot waits to restart its worker after a failure.

        Closing them resets the connections in their queues.
        """
        if self._restart is None or not self._pause:
            return
        if not wanted:
            self._close()
        elif not self.listeners:
            try:
                self._open(listening=True)
            except OSError:
                self._close()  # the next start opens the sockets again, and reports the error if that fails

    def _open(self, listening: bool) -> None:
        for address in self.team.listen_addresses[len(self.listeners) :]:
            self.listeners.append(address.socket_for_worker(listening))

    def _close(self) -> None:
        for address, sock in zip(self.team.listen_addresses, self.listeners, strict=False):
            address.close(sock)
        self.listeners = []

    def remove(self) -> None:
        """Have the worker drain and exit.

        The parent closes its copies of the sockets now. The worker closes its copies when their queues are empty; only
        then does the kernel stop assigning connections to the sockets.
        """
        if self._restart is not None:
            self._restart.cancel()
        for child in self.serving, self.starting:
            if child is not None:
                child.leave()
        self.serving = self.starting = None
        self._close()


class WorkerProcess:
    """A worker's process, from the parent's side."""

    team: Workers

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.team = team = slot.team
        self.ready: bool = False
        self.since: float = team.r.now
        self.silence: float = 0.0  # seconds without a report, see `count_silence`
        ours, theirs = socket.socketpair()
        self.control: Stream = team.r.adopt(ours, framing.lines(self.on_line))
        numbers = [theirs.fileno(), *(sock.fileno() for sock in slot.listeners)]
        shared = [address.shared.fileno() for address in team.listen_addresses if address.shared is not None]
        settings = {'slot': slot.number, 'control': numbers[0], 'listeners': numbers[1:], 'shared': shared}
        not_inherited = (VARIABLE, *systemd.VARIABLES)
        env = {name: value for name, value in os.environ.items() if name not in not_inherited}
        env[VARIABLE] = json.dumps(settings)
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
        counters, draining = json.loads(line)
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
            slot.counters = counters
            if draining and slot.starting is None:  # the program called `drain`, or the worker received SIGTERM
                slot.start()

    def count_silence(self) -> None:
        """Called every second while the worker serves: warn after `hang_timeout` without a report, kill it GRACE later.

        Calls are counted instead of measuring time, because Ctrl-Z stops the parent and its workers together. The first
        second may have been cut short, so the count has to exceed the limit.
        """
        before, self.silence = self.silence, self.silence + REPORTS_EVERY
        limit = self.team.hang_timeout
        assert limit is not None
        if before <= limit < self.silence:
            log(
                'warning',
                '%s has not reported for %g s: its loop is blocked; it will be killed in %g s unless it reports; '
                'if callbacks may take that long, raise hang_timeout',
                self,
                limit,
                GRACE,
            )
        elif self.silence > limit + GRACE:
            log('warning', '%s has not reported for %g s: killing it', self, limit + GRACE)
            self.process.kill()

    def leave(self, replaced: bool = False) -> None:
        """Have the worker drain and exit. `replaced` is true if a successor serves the same sockets."""
        team = self.team
        team.leaving.add(self)
        self._timer.cancel()
        self._timer = team.r.call_later(team.patience, self.on_late, 'has not ended', team.patience)
        if not self.control.closed:
            self.control.write(b'"replaced"\n' if replaced else b'"last"\n')
        # If this worker is still starting and no other worker serves, terminate it only when it is ready: no other
        # worker can serve the connections that wait in the queue.
        if not replaced and (self.ready or self.slot.serving):
            self.process.terminate()

    def on_late(self, what: str, seconds: float) -> None:
        log('warning', '%s %s after %g s: killing it', self, what, seconds)
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
            self.slot.on_failed(self, f'{self} ended unexpectedly ({how})')

    def __repr__(self) -> str:
        return f'worker {self.slot.number} (pid {self.process.pid})'
