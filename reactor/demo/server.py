"""The demo server: a timer delays the answer to each request, and the `on_written` of the answer closes the connection.

It is a faithful port of the Lisp program that this project began with. Any chunk of data counts as a request, and
nothing is parsed. When a client disconnects, its timer is not cancelled; the answer is dropped when the timer fires.

There is one difference from the Lisp program: if a client shuts down its sending side after the request, as `nc -N`
does, it still gets its answer before the connection is closed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

from .. import Listener, Reactor, Stream

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

ASKED = True  # value of `conn.data` once a request has been received


class Server:
    """A listener that answers each request after `delay` seconds."""

    def __init__(self, r: Reactor, delay: float) -> None:
        self.r = r
        self.delay = delay
        self.finished: int = 0
        self.listener: Listener | None = None
        # Bind the methods once, so that tens of thousands of timers share the same objects.
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
        """Stop listening, and close connections that sent no request. Requests already received are still answered."""
        if self.listener is not None:
            self.listener.close()
        for handle in self.r.handles():
            if isinstance(handle, Stream) and handle.origin is self.listener and handle.data is not ASKED:
                handle.close()


def serve(
    r: Reactor, host: str, port: int, *, delay: float, reuse_port: bool, seconds: float | None, stats: bool
) -> Server:
    """Start the server and its statistics in a running reactor."""
    print('Starting TCP server.', flush=True)
    server = Server(r, delay)
    listener = server.listen(host, port, reuse_port=reuse_port)
    quitting = False
    last_finished, last_time = 0, monotonic()

    def quit() -> None:
        nonlocal quitting
        quitting = True
        r.clear_signal_handlers()  # so that a second Ctrl-C raises KeyboardInterrupt
        server.quit()

    def show_stats() -> None:
        nonlocal last_finished, last_time
        now = monotonic()
        counts = r.stats()
        rate = (server.finished - last_finished) / (now - last_time or 1)
        last_finished, last_time = server.finished, now
        try:
            print(
                f'incoming: {counts.incoming}\noutgoing: {counts.outgoing}\n'
                f'finished: {server.finished}\nrate: {rate:.3f} req/s\n',
                flush=True,
            )
        except BrokenPipeError:  # the reader of the output has ended, as with `| head`
            quit()
        if not quitting:
            r.call_later(1, show_stats)

    r.add_signal_handler(signal.SIGINT, quit)
    r.add_signal_handler(signal.SIGTERM, quit)
    # Print this last: now clients can connect and the signals are handled.
    print(f'listening on {listener.address[0]}:{listener.address[1]}', flush=True)
    if seconds is not None:
        r.call_later(seconds, quit).unref()
    if stats:
        show_stats()
    return server
