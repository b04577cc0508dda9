"""A worker: what this process is when its environment says so.

Owns its side of the control connection. Knows nothing of other workers. The rule: it ends when it is told to (SIGTERM,
or a message that its successor is there) or when the parent is gone, and always by draining. Signals that a terminal
sends to the whole process group are the parent's affair.

What it tells, as lines of JSON: its statistics, once a second. The first line says that it is ready.
"""

from __future__ import annotations

import json
import os
import signal
from socket import socket

from .. import Listener, Reactor, Stream, framing
from .doors import inherited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TELL_EVERY = 1.0  # seconds


def work(told: dict[str, Any], main: Any, deadline: float, lame_duck: float, options: dict[str, Any]) -> None:
    """Run `main` as the worker that `told` describes, to its end."""
    with Reactor(**options) as r:
        worker = Worker(r, told, deadline, lame_duck)
        r.run(lambda r: worker.begin(main))
        worker.control.on_close = None


class Worker:
    """This process, as the parent steers it."""

    def __init__(self, r: Reactor, told: dict[str, Any], deadline: float, lame_duck: float) -> None:
        self.r = r
        self.ending = deadline, lame_duck
        self.listeners = [inherited(number) for number in told['listeners']]
        control = socket(fileno=told['control'])
        control.set_inheritable(False)
        self.control: Stream = r.adopt(control, framing.lines(self.on_line), on_close=self.on_parent_gone)
        self.control.unref()
        r.add_signal_handler(signal.SIGTERM, r.shutdown, *self.ending).unref()
        for signum in signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU:
            r.add_signal_handler(signum, int).unref()
        r.call_every(TELL_EVERY, self.tell).unref()

    def begin(self, main: Any) -> None:
        main(self.r, self.listeners)
        self.tell()

    def tell(self) -> None:
        if not self.control.closed and not self.control.buffered:  # a parent that does not read is not buried
            self.control.write(json.dumps(self.r.stats().as_dict() | {'pid': os.getpid()}).encode() + b'\n')

    def on_line(self, conn: Stream, line: bytes) -> None:
        """The successor is ready: the queue is its from now on, and only our copy of the socket is closed."""
        for handle in self.r.handles():
            if isinstance(handle, Listener) and handle.sock in self.listeners:
                handle.close()
        self.r.shutdown(*self.ending)

    def on_parent_gone(self, conn: Stream, exc: BaseException | None) -> None:
        self.r.shutdown(*self.ending)
