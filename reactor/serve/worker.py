"""The worker's side of `run`.

A worker drains and exits when the parent asks it to, on SIGTERM, or when the parent has died. It ignores the other
signals that a terminal sends to the whole process group, because the parent handles them.

Messages on the control connection are lines of JSON. Once a second, and when a drain begins, the worker sends its
counters and whether it is draining; the first line means that the worker is ready. The parent sends 'replaced' when a
successor is ready on the same sockets, or 'last' when no other process will serve them. It sends ["ask", number,
request] for a description of the worker's reactor, which the worker answers with ["answer", number, text].
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from typing import Any

from .. import Listener, Reactor, Stream, inspection
from ..callbacks import ReactorOptions
from ..kernel.sockets import LeanSocket
from ..loop.log import describe, log
from .control import control_stream, report_regularly
from .messages import LONGEST_ANSWER, REPORTS_EVERY


class WorkerListeners(list[Any]):
    """The listening sockets that `run` passes to `main`: a list, with one socket for each address.

    Attributes:
        slot: The number of this worker's slot, from 0. A worker that replaces another one has the same number.
    """

    def __init__(self, sockets: Iterable[Any], slot: int) -> None:
        super().__init__(sockets)
        self.slot = slot


def work(settings: dict[str, Any], main: Any, times: tuple[float, float], options: ReactorOptions) -> None:
    """Run this process as the worker that `settings` describes, until it has drained."""
    with Reactor(**options) as r:
        worker = Worker(r, settings, times)
        try:
            r.run(lambda r: worker.begin(main))
        finally:
            worker.control.on_close = None


class Worker:
    """This process as a worker; `times` are the drain timeout and the lame-duck period, in seconds."""

    def __init__(self, r: Reactor, settings: dict[str, Any], times: tuple[float, float]) -> None:
        self.r = r
        self.times = times
        sockets = [LeanSocket(fileno=number) for number in settings['listeners']]
        self.listeners = WorkerListeners(sockets, settings['slot'])
        self.own: list[Any] = [sock for sock in self.listeners if sock.fileno() not in settings['shared']]
        self.control: Stream = control_stream(r, settings['control'], self.on_line, self.on_orphaned)
        for number in (*settings['listeners'], settings['control']):
            os.set_inheritable(number, False)  # children of this worker must not inherit them
        r.add_signal_handler(signal.SIGTERM, self.drain).unref()
        for signum in signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU:
            r.add_signal_handler(signum, int).unref()
        report_regularly(r, REPORTS_EVERY, self.report)

    def begin(self, main: Any) -> None:
        main(self.r, self.listeners)
        self.report()

    def report(self) -> None:
        if not self.control.closed and not self.control.buffered:  # send nothing more to a parent that does not read
            self.control.write(json.dumps([inspection.counters(self.r), self.r.draining]).encode() + b'\n')

    def drain(self) -> None:
        self.r.drain(*self.times)
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
            {'ask': self.answer}[name](*arguments)
            return
        if message == 'last':  # SIGTERM follows and starts the drain
            self.be_last()
            return
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.listeners:
                handle.close()  # this closes only our copy of the socket; the successor serves the queue from now on
        self.r.drain(*self.times)

    def on_orphaned(self, conn: Stream, exc: BaseException | None) -> None:
        self.be_last()
        self.r.drain(*self.times)

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
