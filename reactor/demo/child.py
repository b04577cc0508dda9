"""A process of the experiment: a server or a load generator, controlled over a socket that is its standard input.

The process exits when its control connection is closed, so no process is left behind, however the experiment ends.
"""

from __future__ import annotations

import socket
from os import getpid
from time import process_time
from typing import Any

from .. import Reactor, Stream
from .control import ControlConnection
from .limits import raise_descriptor_limit
from .load import Load
from .server import Server

RELEASED_PER_TURN = 64  # how many held answers are sent per turn; more would block the loop for too long


class HeldServer(Server):
    """A `Server` that holds all answers until `release`, which is called when all connections are open."""

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
        """Send the held answers, a few per turn. From now on, requests are answered after the delay."""
        self.released = True
        for conn in self.held[:RELEASED_PER_TURN]:
            self.answer(conn)
        del self.held[:RELEASED_PER_TURN]
        if self.held:
            self.r.call_soon(self.release)


class Child:
    """Receives messages from the experiment, carries them out, and reports the results."""

    def __init__(self, r: Reactor, sock: socket.socket) -> None:
        self.r = r
        self.server: HeldServer | None = None
        self.watched: bool = False  # whether to report the counters of the server
        self.load: Load | None = None
        self.control: ControlConnection = ControlConnection(r, sock, self.on_message, r.stop)
        self.control.send(ready=True)

    def on_message(self, message: dict[str, Any]) -> None:
        getattr(self, 'do_' + message.pop('do'))(**message)

    def do_report(self, every: float) -> None:
        """Report the status every so many seconds."""
        self.r.call_every(every, self.report).unref()

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
        load = self.load
        replied = [round(load.started + time, 6) for time in load.replied_at]
        self.control.send(
            errors=load.errors, reply_times=[round(time, 6) for time in load.reply_times], replied=replied
        )

    def report(self) -> None:
        if self.server is not None and self.server.listener is not None:
            status: dict[str, Any] = {'open': self.server.listener.open_connections, 'finished': self.server.finished}
            if self.watched:
                counters = self.r.stats().as_dict()
                status['counters'] = {**counters, 'pid': getpid(), 'requests': self.server.finished}
            self.control.send(cpu=process_time(), **status)
        elif self.load is not None:
            load = self.load
            settled = load.connected + sum(load.errors.values())
            self.control.send(settled=settled, connected=load.connected, opened=load.opened)


def main() -> None:
    """Run this process as a child of the experiment, controlled over the socket that is its standard input."""
    raise_descriptor_limit()
    with Reactor() as r:
        Child(r, socket.socket(fileno=0))
        r.run()
