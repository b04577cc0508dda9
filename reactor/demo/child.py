"""A process of the experiment: a server or a load, steered over a socket that is its standard input.

Owns one role. The rule: it lives no longer than its control connection, so whatever becomes of the experiment, no
process is left behind.
"""

from __future__ import annotations

import signal
import socket
from os import getpid
from time import process_time

from .. import Reactor, Stream
from .control import ControlConnection
from .limits import raise_descriptor_limit
from .load import Load
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REPORT_EVERY = 0.2  # seconds
RELEASED_PER_TURN = 64  # answers that waited; more at once would hold up everything else


class HeldServer(Server):
    """The seed's server, but no answer goes out before `release`, which comes when all connections are open."""

    def __init__(self, r: Reactor, delay: float) -> None:
        super().__init__(r, delay)
        self.released: bool = False
        self.held: list[Stream] = []

    def answer(self, conn: Stream) -> None:
        if self.released:
            super().answer(conn)
        else:
            self.held.append(conn)

    def release(self) -> None:
        """Answer who waits, some in each turn, and from now on everybody in time."""
        self.released = True
        for conn in self.held[:RELEASED_PER_TURN]:
            self.answer(conn)
        del self.held[:RELEASED_PER_TURN]
        if self.held:
            self.r.call_soon(self.release)


class Child:
    """What a process of the experiment does with the messages that it gets."""

    def __init__(self, r: Reactor, sock: socket.socket) -> None:
        self.r = r
        self.server: HeldServer | None = None
        self.watched: bool = False  # whether the server's figures are to be told
        self.load: Load | None = None
        self.control: ControlConnection = ControlConnection(r, sock, self.on_message, r.stop)
        r.call_every(REPORT_EVERY, self.report).unref()

    def on_message(self, message: dict[str, Any]) -> None:
        getattr(self, 'do_' + message.pop('do'))(**message)

    def do_listen(self, host: str, port: int, delay: float, reuse_port: bool, watched: bool) -> None:
        self.server, self.watched = HeldServer(self.r, delay), watched
        try:
            listener = self.server.listen(host, port, reuse_port=reuse_port)
        except OSError as exc:
            self.control.send(failed=str(exc))
            return
        self.report()
        self.control.send(listening=listener.address[1])

    def do_release(self) -> None:
        if self.server is not None:
            self.server.release()

    def do_load(self, host: str, port: int, **load: Any) -> None:
        self.load = Load(self.r, host, port, on_done=self.on_load_done, calls=1, **load)

    def on_load_done(self) -> None:
        assert self.load is not None
        self.report()
        self.control.send(errors=self.load.errors, reply_times=[round(time, 6) for time in self.load.reply_times])

    def report(self) -> None:
        if self.server is not None and self.server.listener is not None:
            told: dict[str, Any] = {'open': self.server.listener.open_connections, 'finished': self.server.finished}
            if self.watched:
                figures = self.r.stats().as_dict()
                told['figures'] = {**figures, 'pid': getpid(), 'requests': self.server.finished}
            self.control.send(cpu=process_time(), **told)
        elif self.load is not None:
            load = self.load
            settled = load.connected + sum(load.errors.values())
            self.control.send(settled=settled, connected=load.connected, seconds=load.opened - load.started)


def main() -> None:
    """Run a role over the socket that is standard input."""
    raise_descriptor_limit()
    with Reactor() as r:
        # Ctrl-C goes to the whole process group; the experiment itself decides what becomes of us.
        r.add_signal_handler(signal.SIGINT, int).unref()
        Child(r, socket.socket(fileno=0))
        r.run()
