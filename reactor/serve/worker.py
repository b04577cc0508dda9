"""A worker: what this process is when its environment says so.

Owns its side of the control connection. Knows nothing of other workers. The rule: it ends when it is told to (by word
of the parent, or SIGTERM) or when the parent is gone, and always by draining. The signals that a terminal sends to the
whole process group are the parent's to judge.

What it hears is 'replaced', when its successor is there, or 'last', when nobody will serve its own sockets after it.

What it tells, in lines of JSON, is its statistics and whether it drains, once a second and when that begins. The first
line says that it is ready.
"""

from __future__ import annotations

import json
import os
import signal
from socket import socket

from .. import Listener, Reactor, Stream, framing
from ..kernel import LeanSocket
from .workers import REPORTS_EVERY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..callbacks import ReactorOptions


def work(told: dict[str, Any], main: Any, times: tuple[float, float], options: ReactorOptions) -> None:
    """Be the worker that `told` describes; returns when it is done."""
    with Reactor(**options) as r:
        worker = Worker(r, told, times)
        try:
            r.run(lambda r: worker.begin(main))
        finally:
            worker.control.on_close = None


class Worker:
    """This process, as the parent steers it; `times`: the timeout of the drain and the lame duck."""

    def __init__(self, r: Reactor, told: dict[str, Any], times: tuple[float, float]) -> None:
        self.r = r
        self.times = times
        self.listeners: list[Any] = [LeanSocket(fileno=number) for number in told['listeners']]
        self.own: list[Any] = [sock for sock in self.listeners if sock.fileno() not in told['shared']]
        self.control: Stream = r.adopt(
            socket(fileno=told['control']), framing.lines(self.on_line), on_close=self.on_orphaned
        )
        self.control.unref()
        for number in (*told['listeners'], told['control']):
            os.set_inheritable(number, False)  # not for children of ours
        r.add_signal_handler(signal.SIGTERM, self.drain).unref()
        for signum in signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU:
            r.add_signal_handler(signum, int).unref()
        r.call_every(REPORTS_EVERY, self.tell).unref()

    def begin(self, main: Any) -> None:
        main(self.r, self.listeners)
        self.tell()

    def tell(self) -> None:
        if not self.control.closed and not self.control.buffered:  # a parent that does not read gets no more of it
            figures = self.r.stats().as_dict() | {'pid': os.getpid()}
            self.control.write(json.dumps([figures, self.r.draining]).encode() + b'\n')

    def drain(self) -> None:
        self.r.drain(*self.times)
        self.tell()

    def on_line(self, conn: Stream, line: bytes) -> None:
        if json.loads(line) == 'last':  # and SIGTERM is on its way
            self.be_last()
            return
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.listeners:
                handle.close()  # our copy: the queue is the successor's from now on
        self.r.drain(*self.times)

    def on_orphaned(self, conn: Stream, exc: BaseException | None) -> None:
        self.be_last()
        self.r.drain(*self.times)

    def be_last(self) -> None:
        """No other process serves the queues of our own sockets after us. Shared ones may be another program's, too."""
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.own:
                handle.handle_last()
