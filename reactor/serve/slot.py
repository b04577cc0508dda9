"""The place of one worker: its listening sockets, and the processes that use them.

A slot has at most two workers at a time: one that serves, and one that is starting or draining. The sockets of a slot
stay open when a worker exits, so the next worker serves the connections in their queues.
"""

from __future__ import annotations

from typing import Any

from .. import Timer
from ..loop.log import log
from .team import Team
from .worker_process import WorkerProcess

STEADY = 1.0  # seconds: a worker that dies after serving this long is restarted without a pause
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds until a worker that died sooner is restarted; doubled each time


class Slot:
    """The place of one worker: its listening sockets, and the processes that use them."""

    def __init__(self, team: Team, number: int, listening: bool = True) -> None:
        self.team = team
        self.number = number
        self.listeners: list[Any] = []
        try:
            self._open(listening)
        except BaseException:
            self._close()
            raise
        self.serving: WorkerProcess | None = None
        self.starting: WorkerProcess | None = None
        team.restarts.setdefault(str(number), 0)
        self._pause = 0.0
        self._restart: Timer | None = None

    @property
    def occupied(self) -> bool:
        """Whether a worker serves or is starting. Otherwise the slot waits to start its worker again."""
        return self.serving is not None or self.starting is not None

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

    def on_drained(self) -> None:
        """Called when the serving worker has drained by itself and exited, before its successor is ready."""
        self.serving = None
        self.team.go_on()

    def on_failed(self, child: WorkerProcess | None, what: str) -> None:
        """Called when a worker could not be started, or has exited although it was not asked to."""
        self.team.restarts[str(self.number)] += 1
        if child is not None and child is self.serving:
            self.serving = None
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
