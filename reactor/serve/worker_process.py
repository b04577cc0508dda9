"""A worker's process, from the parent's side: how it is started, what it reports, and how it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from .. import DEVNULL, Process, Stream, framing
from ..loop.log import log
from . import systemd
from .health import LATE, WorkerState
from .messages import GRACE, HURRY, LONGEST_ANSWER, MOST_QUESTIONS, REPORTS_EVERY, RESTART, VERSION, Terms
from .program import directory
from .team import Team, WorkerSlot

VARIABLE = 'REACTOR_WORKER'  # environment variable of a worker, with its slot and its descriptors
STACK_TIME = 0.5  # seconds that a worker has to write its stacks before it is killed
CHECKS_EVERY = REPORTS_EVERY / 2  # seconds between two checks for silent workers


def is_stopped(pid: int) -> bool:
    """Return whether a child is stopped, by SIGSTOP for example."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except (AttributeError, OSError):
        return False  # a platform without this call, or a process that has been reaped


class WorkerProcess:
    """A worker's process, from the parent's side."""

    team: Team

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.team = team = slot.team
        self.greeted: bool = False  # it has sent its 'hello', and writes its stacks on SIGQUIT
        self.ready: bool = False
        self.hurried: bool = False
        self.drain_time: float = team.patience  # seconds from the beginning of a drain until the worker is killed
        self.hang_timeout: float | None = team.hang_timeout
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
        settings: dict[str, Any] = {'version': VERSION, 'slot': slot.number, 'control': numbers[0]}
        settings |= {'listeners': numbers[1:], 'shared': shared}
        not_inherited = (VARIABLE, *systemd.VARIABLES)
        env = {name: value for name, value in os.environ.items() if name not in not_inherited}
        env[VARIABLE] = json.dumps(settings)
        try:
            self.process: Process = team.r.spawn(
                team.argv, stdin=DEVNULL, env=env, pass_fds=numbers, on_exit=self.on_exit, cwd=directory()
            )
        except BaseException:
            self.control.abort()
            raise
        finally:
            theirs.close()
        self._timer = team.r.call_later(team.start_timeout, self.on_late, 'is not ready', team.start_timeout)

    def on_line(self, conn: Stream, line: bytes) -> None:
        message = json.loads(line)
        if message[0] == 'hello':
            self.on_hello(*message[1:])
        elif message[0] == 'answer':
            self.on_answer(*message[1:])
        else:
            self.on_report(*message)

    def on_hello(self, version: int, *details: Any) -> None:
        """Called when the worker has started: apply the times of its program."""
        if version != VERSION:
            log(
                'warning',
                '%s uses version %s of the messages between worker and parent, and this parent version %s: %s',
                self, version, VERSION, RESTART,
            )  # fmt: skip
            # Paused, so that a report that follows does not make this worker replace another one. Not closed: it would
            # take itself for an orphan, and have the kernel open no more connections on the sockets that it shares.
            self.control.pause_reading()
            self.process.kill()
            return
        terms: Terms = details[0]
        self.greeted = True
        self.drain_time = terms['drain_timeout'] + GRACE
        self.hang_timeout = terms['hang_timeout']
        self.team.start_timeout = terms['start_timeout']
        self.team.compare(self, terms['fixed'])

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
        """Called once a second. The first report means that the worker is ready."""
        now, slot = self.team.r.now, self.slot
        self.counters, self.draining = counters, draining
        self.silence, self.reported = 0.0, now
        if not self.ready:
            log('info', '%s is ready after %.1f s', self, now - self.since)
            self.ready, self.since = True, now
            if self not in self.team.leaving:
                self._timer.cancel()
                slot.on_ready(self)
        if self is slot.serving and self.draining and slot.starting is None:
            log('info', '%s drains by itself, because of SIGTERM or `drain`; it is replaced', self)
            slot.start()

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
        """Called every CHECKS_EVERY seconds once the worker is ready: warn after `hang_timeout` without a report.

        The worker writes its stacks then, and is killed GRACE seconds later, or after half of a short `hang_timeout`.

        Calls are counted instead of measuring time, because Ctrl-Z stops the parent and its workers together. The first
        interval may have been cut short, so the count has to exceed the limit.
        """
        before, self.silence = self.silence, self.silence + CHECKS_EVERY
        limit = self.hang_timeout
        if limit is None:
            return
        grace = min(GRACE, limit / 2)
        if before <= limit < self.silence:
            why = 'its loop is blocked; its stacks follow, and if callbacks may take that long, raise hang_timeout'
            if is_stopped(self.process.pid):
                why = 'it is stopped by a signal'
            log(
                'warning',
                '%s has not reported for %g s: %s; it will be killed in %g s unless it reports',
                self, limit, why, grace,
            )  # fmt: skip
            self._request_stacks()
        elif self.silence > limit + grace:
            log('warning', '%s has not reported for %g s: killing it', self, limit + grace)
            self._count_kill()
            self.process.kill()

    def leave(self, replaced: bool = False) -> None:
        """Have the worker drain and exit. `replaced` is true if a successor serves the same sockets."""
        team = self.team
        log('info', '%s drains, %s', self, 'because its successor is ready' if replaced else 'and is not replaced')
        team.leaving.add(self)
        self.replaced = replaced
        self.since = team.r.now
        self._timer.cancel()
        if not self.control.closed:
            self.control.write(b'"replaced"\n' if replaced else b'"last"\n')
        self.drain(*self.team.times)
        # The control connection of a worker that is still starting is read only when it is ready. Do not wait for that,
        # unless no other worker can serve the connections that wait in the queue.
        if not replaced and not self.ready and self.slot.serving:
            self.process.terminate()

    def drain(self, *times: float) -> None:
        """Have a leaving worker drain, or end its drain earlier. Kill it GRACE seconds after the timeout.

        Args:
            *times: The timeout and the lame-duck period, in seconds. Without them, the worker uses its own.
        """
        patience = times[0] + GRACE if times else self.drain_time
        deadline = self._timer.deadline
        if deadline is None or self.team.r.timers.clock() + patience < deadline:
            self._timer.cancel()
            self._timer = self.team.r.call_later(patience, self.on_late, 'has not ended', patience)
        if self.control.closed:
            self.process.terminate()
        else:
            self.control.write(json.dumps(['drain', *times]).encode() + b'\n')

    def hurry(self) -> None:
        """Shorten the drain to HURRY seconds, because a reload waits for its end."""
        if self.hurried:
            return
        self.hurried = True
        remaining = self.since + self.drain_time - self.team.r.now
        if remaining > HURRY + GRACE:
            log(
                'info',
                'a reload waits for %s, which drains: it gets %g s more instead of %.0f s',
                self, HURRY, remaining - GRACE,
            )  # fmt: skip
            self.drain(HURRY)
        else:
            log('info', 'a reload waits for %s, which drains for up to %.0f s more', self, remaining)

    def on_late(self, what: str, seconds: float) -> None:
        log('warning', '%s %s after %g s: killing it', self, what, seconds)
        self._count_kill()
        self._request_stacks()
        self._timer = self.team.r.call_later(STACK_TIME, self.process.kill)

    def _count_kill(self) -> None:
        if self in self.team.leaving and not self.team.slots:  # a worker that a reload replaced is not counted
            self.team.status = 1

    def _request_stacks(self) -> None:
        if self.greeted:  # before that, the signal would end it
            self.process.send_signal(signal.SIGQUIT)

    def on_exit(self, process: Process, code: int | None, signum: int | None) -> None:
        self._timer.cancel()
        self.control.abort()
        for number in list(self._questions):
            self.on_answer(number, json.dumps({'error': 'the worker has ended'}))
        how = f'signal {signum}' if code is None else f'exit code {code}'
        if self in self.team.leaving:
            took = self.team.r.now - self.since
            if code == 0:
                log('info', '%s has drained in %.1f s', self, took)
            elif self.ready:
                log('warning', '%s ended %.1f s after the beginning of its drain (%s)', self, took, how)
            self.team.leaving.discard(self)
            self.team.go_on()
        elif code == 0 and self.draining and self is self.slot.serving:
            log('info', '%s has drained', self)
            self.slot.on_drained()
        else:
            self.slot.on_failed(self, f'{self} ended unexpectedly ({how})')

    def __repr__(self) -> str:
        return f'worker {self.slot.number} (pid {self.process.pid})'
