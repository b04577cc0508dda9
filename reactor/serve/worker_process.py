"""A worker's process, from the parent's side: how it is started, what it reports, and how it leaves."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from .. import DEVNULL, Process, Stream, framing
from ..loop.log import log
from . import systemd
from .health import LATE, WorkerState
from .messages import LONGEST_ANSWER, MOST_QUESTIONS, REPORTS_EVERY
from .program import BEGAN_IN, folder
from .team import Team, WorkerSlot

VARIABLE = 'REACTOR_WORKER'  # environment variable of a worker, with its slot and its descriptors
GRACE = 2.0  # seconds from the drain timeout, or from the warning about a hung worker, until the worker is killed


class WorkerProcess:
    """A worker's process, from the parent's side."""

    team: Team

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.team = team = slot.team
        self.ready: bool = False
        self.since: float = team.r.now
        self.started: float = time.time()
        self.reported: float | None = None  # when the last report arrived, on the loop's clock
        self.counters: dict[str, Any] = {}  # of the last report
        self.draining: bool = False  # in the last report
        self.replaced: bool = False  # whether a successor serves the same sockets
        self.silence: float = 0.0  # seconds without a report, see `count_silence`
        self._questions: dict[int, Callable[[WorkerProcess, str], object]] = {}  # unanswered, by their number
        self._numbers = count()
        ours, theirs = socket.socketpair()
        self.control: Stream = team.r.adopt(ours, framing.lines(self.on_line, limit=3 * LONGEST_ANSWER))
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
        message = json.loads(line)
        if message[0] == 'answer':
            self.on_answer(*message[1:])
        else:
            self.on_report(*message)

    def ask(self, request: str, on_answer: Callable[[WorkerProcess, str], object]) -> bool:
        """Send a question. `on_answer(self, text)` is called with the answer, or when the worker has ended.

        Returns:
            False if the worker does not read, or has not answered earlier questions. `on_answer` is then not called.
        """
        if self.control.closed or self.control.buffered or len(self._questions) >= MOST_QUESTIONS:
            return False
        number = next(self._numbers)
        self._questions[number] = on_answer
        self.control.write(json.dumps(['ask', number, request]).encode() + b'\n')
        return True

    def on_answer(self, number: int, text: str) -> None:
        self._questions.pop(number)(self, text)

    def on_report(self, counters: dict[str, Any], draining: bool) -> None:
        self.counters, self.draining = counters, draining
        self.silence, self.reported = 0.0, self.team.r.now
        slot = self.slot
        if not self.ready:
            self.ready, self.since = True, self.team.r.now
            if self in self.team.leaving:
                self.process.terminate()
            else:
                self._timer.cancel()
                slot.on_ready(self)
        if self is slot.serving and self.draining and slot.starting is None:
            slot.start()  # the program called `drain`, or the worker received SIGTERM

    def state(self, name: str) -> WorkerState:
        """Return the state of this worker, under this name."""
        age = None if self.reported is None else max(0.0, self.team.r.now - self.reported)
        if age is not None and age > LATE:
            state = 'hung'
        elif self.draining or self in self.team.leaving:
            state = 'draining'
        else:
            state = 'serving' if self.ready else 'starting'
        return WorkerState(name, state, self.process.pid, self.started, age)

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
        self.replaced = replaced
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
        for number in list(self._questions):
            self.on_answer(number, json.dumps({'error': 'the worker has ended'}))
        if self in self.team.leaving:
            self.team.leaving.discard(self)
            self.team.go_on()
        else:
            how = f'signal {signum}' if code is None else f'exit code {code}'
            self.slot.on_failed(self, f'{self} ended unexpectedly ({how})')

    def __repr__(self) -> str:
        return f'worker {self.slot.number} (pid {self.process.pid})'
