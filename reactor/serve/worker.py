"""The worker's side of `run`.

A worker drains and exits when the parent asks it to, on SIGTERM, or when the parent has died. The parent asks on the
control connection and not by a signal, because the program may have a SIGTERM handler of its own. A worker ignores the
other signals that a terminal sends to the whole process group, because the parent handles them. On SIGQUIT, it writes
its stacks to standard error and continues.

The messages on the control connection are described in `messages.py`. A worker reads them only when `main` has
returned, because they concern the listeners that `main` makes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from socket import SOMAXCONN
from typing import Any

from .. import Listener, Reactor, ReactorError, SignalHandler, Stream, inspection
from ..callbacks import ReactorOptions
from ..kernel.sockets import LeanSocket
from ..loop.log import describe, log, name_of
from .control import control_stream, report_regularly
from .logs import lines_lost
from .messages import GRACE, LONGEST_ANSWER, REPORTS_EVERY, RESTART, STRAY, VERSION, Terms
from .orphans import end_after_parent, write_stacks_on_sigquit
from .terminal import ignore_job_control


class WorkerSocket(LeanSocket):
    """A listening socket of a worker. Its queue is at most as long as `backlog` of `run` allows."""

    __slots__ = ('_backlog',)

    def __init__(self, fileno: int, backlog: int) -> None:
        super().__init__(fileno=fileno)
        self._backlog = backlog

    def listen(self, backlog: int = SOMAXCONN) -> None:
        super().listen(min(backlog, self._backlog))


class WorkerListeners(list[Any]):
    """The listening sockets that `run` passes to `main`: a list, with one socket for each address.

    Attributes:
        slot: The number of this worker's slot, from 0. A worker that replaces another one has the same number.
    """

    def __init__(self, sockets: Iterable[Any], slot: int) -> None:
        super().__init__(sockets)
        self.slot = slot


def work(
    settings: dict[str, Any], main: Any, times: tuple[float, float], options: ReactorOptions, terms: Terms
) -> None:
    """Run this process as the worker that `settings` describes, until it has drained.

    Raises ReactorError if the parent runs a version of this package whose messages are different.
    """
    if (version := settings.get('version')) != VERSION:
        raise ReactorError(
            f'the parent of this worker uses version {version} of the messages between them, and this '
            f'program version {VERSION}: {RESTART}'
        )
    write_stacks_on_sigquit()
    ignore_job_control()
    with Reactor(**options) as r:
        worker = Worker(r, settings, times)
        name = f'worker {settings["slot"]} (pid {os.getpid()})'
        end_after_parent(settings['control'], name, times[0] + GRACE)
        worker.greet(terms)
        try:
            r.run(lambda r: worker.begin(main))
        finally:
            worker.control.on_close = None


class Worker:
    """This process as a worker; `times` are the drain timeout and the lame-duck period, in seconds."""

    def __init__(self, r: Reactor, settings: dict[str, Any], times: tuple[float, float]) -> None:
        self.r = r
        self.times = times
        backlog = settings.get('backlog', SOMAXCONN)
        sockets = [WorkerSocket(number, backlog) for number in settings['listeners']]
        self.listeners: WorkerListeners = WorkerListeners(sockets, settings['slot'])
        self.own: list[Any] = [sock for sock in self.listeners if sock.fileno() not in settings['shared']]
        self.control: Stream = control_stream(r, settings['control'], self.on_line, self.on_orphaned)
        self.control.pause_reading()  # until `main` has returned
        for number in (*settings['listeners'], settings['control']):
            os.set_inheritable(number, False)  # children of this worker must not inherit them
        self.on_sigterm: SignalHandler | None = r.add_signal_handler(signal.SIGTERM, self.drain)
        self.on_sigterm.unref()
        for signum in signal.SIGINT, signal.SIGHUP:
            r.add_signal_handler(signum, int).unref()
        for signum in STRAY:
            if signal.getsignal(signum) is signal.SIG_DFL:
                r.add_signal_handler(signum, int).unref()
        report_regularly(r, REPORTS_EVERY, self.report)

    def greet(self, terms: Terms) -> None:
        self.control.write(json.dumps(['hello', VERSION, terms]).encode() + b'\n')

    def begin(self, main: Any) -> None:
        main(self.r, self.listeners)
        self.report()
        self.control.resume_reading()

    def report(self) -> None:
        self.check_sigterm()
        if not self.control.closed and not self.control.buffered:  # send nothing more to a parent that does not read
            counters = {**inspection.counters(self.r), 'log_lines_lost': lines_lost()}
            self.control.write(json.dumps([counters, self.r.draining]).encode() + b'\n')

    def check_sigterm(self) -> None:
        """Log a warning, once, if the program has replaced the SIGTERM handler with one that does not drain."""
        handler = self.on_sigterm
        if handler is None:
            return
        installed = signal.getsignal(signal.SIGTERM)
        if installed is not handler.claim or handler.fn not in (self.drain, self.r.drain):
            log(
                'warning',
                'this program has replaced the SIGTERM handler of its worker with %s: the parent still drains the '
                'worker, but SIGTERM that is sent to the worker alone does not; for work at the start of a drain, use '
                'r.add_drain_callback',
                name_of(handler.fn if installed is handler.claim else installed),
            )
            self.on_sigterm = None

    def drain(self, *times: float) -> None:
        timeout, lame_duck = (*times, 0.0)[:2] if times else self.times
        self.r.drain(timeout, lame_duck)
        self.report()

    def answer(self, number: int, request: str) -> None:
        """Send the parent the description that it has asked for."""
        text = described(self.r, request)
        if len(text) > LONGEST_ANSWER:
            text = json.dumps({'error': 'the answer is too long; use a smaller limit'})
        if not self.control.closed and self.control.buffered < LONGEST_ANSWER:
            self.control.write(json.dumps(['answer', number, text]).encode() + b'\n')

    def on_line(self, conn: Stream, line: bytes) -> None:
        message = json.loads(line)
        if isinstance(message, list):
            name, *arguments = message
            (self.drain if name == 'drain' else self.answer)(*arguments)
        elif message == 'last':
            self.be_last()
        else:
            self.be_replaced()

    def on_orphaned(self, conn: Stream, exc: BaseException | None) -> None:
        self.be_last()
        self.r.drain(*self.times)

    def be_replaced(self) -> None:
        """Leave the queues to the successor at once, and drain."""
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.listeners:
                handle.close()  # this closes only our copy of the socket; the successor serves the queue from now on
        self.drain()

    def be_last(self) -> None:
        """Inform the listeners of our own sockets that no other process serves their queues."""
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.own:
                handle.handle_last()


def described(r: Reactor, request: str) -> str:
    """Return the description that `request` names, as JSON. Never raises.

    Args:
        r: The reactor to describe.
        request: JSON: the name of a function in `inspection.DESCRIPTIONS`, and its arguments after `r`.

    Returns:
        An object with the key 'answer', or with the key 'error', which says what went wrong.
    """
    try:
        name, arguments = json.loads(request)
        return json.dumps({'answer': inspection.DESCRIPTIONS[name](r, **arguments)})
    except Exception as exc:  # raised by a handle's repr, for example; it must not harm the program
        log('error', 'exception while describing the reactor', exc=exc)
        return json.dumps({'error': f'{type(exc).__name__}: {describe(exc)}; see the log for the traceback'})
