"""The seed's server: every connection asks, waits on a timer, and is answered by a write-callback that closes it.

Owns the answer and the counting. The rule: it stays a faithful port. Any chunk counts as a request, nothing is parsed,
and what a client that is gone asked for is looked at when its time comes, not before. Unlike the seed, it answers a
client that has ended its side after the request, as `nc -N` does: only the answer ends the connection then.
"""

from __future__ import annotations

import signal
from time import monotonic

from .. import Listener, Reactor, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RESPONSE = b'\r\n'.join(
    [
        b'HTTP/1.1 200 OK',
        b'Date: Wed, 03 Oct 2012 23:43:10 GMT',
        b'Content-Type: text/plain',
        b'Content-Length: 9',
        b'',
        b'omglolwtf',
    ]
)

ASKED = True  # in conn.data: it has asked, and is owed an answer


class Server:
    """One listener and what it owes its clients; `delay` in seconds."""

    def __init__(self, r: Reactor, delay: float) -> None:
        self.r = r
        self.delay = delay
        self.finished: int = 0
        self.listener: Listener | None = None
        # Bound once: thirty thousand timers share one method object.
        self._answer: Callable[[Stream], None] = self.answer
        self._finish: Callable[[Stream], None] = self.finish

    def listen(self, host: str, port: int, **options: Any) -> Listener:
        self.listener = self.r.listen_tcp(host, port, self.on_data, on_eof=self.on_eof, **options)
        return self.listener

    def on_data(self, conn: Stream, data: bytes) -> None:
        conn.data = ASKED
        self.r.call_later(self.delay, self._answer, conn)

    def on_eof(self, conn: Stream) -> None:
        if conn.data is not ASKED:
            conn.close()

    def answer(self, conn: Stream) -> None:
        if not conn.closed:
            conn.write(RESPONSE, self._finish)

    def finish(self, conn: Stream) -> None:
        conn.close()
        self.finished += 1

    def quit(self) -> None:
        """Listen no more and close who never asked; who did is still answered."""
        if self.listener is not None:
            self.listener.close()
        for handle in self.r.handles():
            if isinstance(handle, Stream) and handle.origin is self.listener and handle.data is not ASKED:
                handle.close()


def serve(
    r: Reactor, host: str, port: int, *, delay: float, reuse_port: bool, seconds: float | None, stats: bool
) -> Server:
    """Start the server and its statistics, in a running reactor."""
    print('Starting TCP server.', flush=True)
    server = Server(r, delay)
    listener = server.listen(host, port, reuse_port=reuse_port)
    quitting = False
    last_finished, last_time = 0, monotonic()

    def quit() -> None:
        nonlocal quitting
        quitting = True
        r.clear_signal_handlers()  # so that a second Ctrl-C is Python's own and ends it at once
        server.quit()

    def show_stats() -> None:
        nonlocal last_finished, last_time
        now = monotonic()
        counts = r.stats()
        rate = (server.finished - last_finished) / (now - last_time or 1)
        last_finished, last_time = server.finished, now
        print(
            f'incoming: {counts.incoming}\noutgoing: {counts.outgoing}\n'
            f'finished: {server.finished}\nrate: {rate:.3f} req/s\n',
            flush=True,
        )
        if not quitting:
            r.call_later(1, show_stats)

    r.add_signal_handler(signal.SIGINT, quit)
    r.add_signal_handler(signal.SIGTERM, quit)
    # From here on it can be talked to, and told to end.
    print(f'listening on {listener.address[0]}:{listener.address[1]}', flush=True)
    if seconds is not None:
        r.call_later(seconds, quit).unref()
    if stats:
        show_stats()
    return server
