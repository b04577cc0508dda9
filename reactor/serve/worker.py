"""The worker's side of `run`.

A worker drains and exits when the parent asks it to, on SIGTERM, or when the parent has died. It ignores the other
signals that a terminal sends to the whole process group, because the parent handles them. On SIGQUIT, it writes its
stacks to standard error and continues.

Messages on the control connection are lines of JSON. The worker begins with a 'hello'. Once a second, and when a drain
begins, it sends its counters and whether it is draining; the first of these lines means that the worker is ready. The
parent sends 'replaced' when a successor is ready on the same sockets, or 'last' when no other process will serve them.
It sends 'hurry' when a reload waits for the end of this worker's drain.
"""

from __future__ import annotations

import json
import os
import signal
from socket import socket
from typing import Any

from .. import Listener, Reactor, ReactorError, Stream, framing
from ..callbacks import ReactorOptions
from ..kernel.sockets import LeanSocket
from .messages import GRACE, HURRY, REPORTS_EVERY, RESTART, STRAY, VERSION, Terms
from .orphans import end_after_parent, write_stacks_on_sigquit
from .terminal import ignore_job_control


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
        self.listeners: list[Any] = [LeanSocket(fileno=number) for number in settings['listeners']]
        self.own: list[Any] = [sock for sock in self.listeners if sock.fileno() not in settings['shared']]
        self.control: Stream = r.adopt(
            socket(fileno=settings['control']), framing.lines(self.on_line), on_close=self.on_orphaned
        )
        self.control.unref()
        for number in (*settings['listeners'], settings['control']):
            os.set_inheritable(number, False)  # children of this worker must not inherit them
        r.add_signal_handler(signal.SIGTERM, self.drain).unref()
        for signum in signal.SIGINT, signal.SIGHUP:
            r.add_signal_handler(signum, int).unref()
        for signum in STRAY:
            if signal.getsignal(signum) is signal.SIG_DFL:
                r.add_signal_handler(signum, int).unref()
        r.call_every(REPORTS_EVERY, self.report).unref()

    def greet(self, terms: Terms) -> None:
        self.control.write(json.dumps(['hello', VERSION, terms]).encode() + b'\n')

    def begin(self, main: Any) -> None:
        main(self.r, self.listeners)
        self.report()

    def report(self) -> None:
        if not self.control.closed and not self.control.buffered:  # send nothing more to a parent that does not read
            counters = self.r.stats().as_dict() | {'pid': os.getpid()}
            self.control.write(json.dumps([counters, self.r.draining]).encode() + b'\n')

    def drain(self) -> None:
        self.r.drain(*self.times)
        self.report()

    def on_line(self, conn: Stream, line: bytes) -> None:
        message = json.loads(line)
        if message == ['hurry']:
            self.r.drain(min(HURRY, self.times[0]))
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
