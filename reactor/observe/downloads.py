"""The flight recorder's trace as a download of the live page.

The trace is made in a thread, as for the command `trace` of a control socket, and kept compressed. It is decompressed
and sent slice by slice, so that neither a large trace nor a slow client costs much time or memory.
"""

from __future__ import annotations

import os
import zlib
from functools import partial

from .. import Reactor, Stream
from ..loop.log import log
from .recorder import FlightRecorder, trace_name
from .responder import Headers, Request
from .trace_events import compressed

SLICE = 256 * 1024  # bytes to decompress and to send in one turn, which takes about a millisecond
MOST_DOWNLOADS = 2  # at once: each takes one of the threads of the reactor until the trace is made
NO_RECORDER = b'this page has no open flight recorder: pass recorder=observe.FlightRecorder(r) to serve_page\n'
OWN_SITE = ('same-origin', 'none')  # `Sec-Fetch-Site` of a click on the page and of a typed address


class Downloads:
    """Answers the requests for the trace.

    Attributes:
        conns: The connections of the downloads, also while their traces are made.
    """

    def __init__(self, r: Reactor, recorder: FlightRecorder | None, headers: Headers) -> None:
        self._r = r
        self._recorder = recorder
        self._headers = headers
        self.conns: set[Stream] = set()

    @property
    def seconds(self) -> float | None:
        """How far back the trace reaches, or None if there is nothing to download."""
        return None if self._recorder is None or self._recorder.closed else self._recorder.seconds

    def answer(self, request: Request) -> None:
        """Send the trace, or the reason why not."""
        if self._recorder is None or self._recorder.closed:
            request.reply(404, 'text/plain', NO_RECORDER)
        elif request.headers.get('sec-fetch-site', 'none') not in OWN_SITE:
            # Another site could not read the trace, but its scripts could make this program busy with making traces.
            request.reply(403, 'text/plain', b'open the live page, and download the trace from there\n')
        elif request.method == 'HEAD':
            request.stream('application/json', self._as_file())
        elif len(self.conns) >= MOST_DOWNLOADS:
            request.reply(503, 'text/plain', b'other clients are downloading the trace; try again in a moment\n')
        else:
            recording, done = self._recorder.recording('downloaded'), partial(self._made, request)
            self._r.run_in_thread(compressed, recording, on_done=done).unref()
            self.conns.add(request.conn)

    def _as_file(self) -> Headers:
        return ('Content-Disposition', f'attachment; filename="{trace_name(os.getpid())}.json"'), *self._headers

    def _made(self, request: Request, made: tuple[bytes, int] | None, exc: BaseException | None) -> None:
        if made is None:
            log('error', 'the trace for a browser could not be made', exc=exc)
            request.reply(500, 'text/plain', b'the trace could not be made; see the log of the program\n')
            self.conns.discard(request.conn)
            return
        body, length = made
        conn = request.stream('application/json', (('Content-Length', str(length)), *self._as_file()))
        if conn is None:  # the client has disconnected
            self.conns.discard(request.conn)
            return
        conn.on_close = self._on_close
        conn.on_drain = Slices(body).send_next
        conn.on_drain(conn)

    def _on_close(self, conn: Stream, exc: BaseException | None) -> None:
        self.conns.discard(conn)


class Slices:
    """The part of a trace that has not been sent yet."""

    __slots__ = ('_left', '_unpacker')

    def __init__(self, packed: bytes) -> None:
        self._left = packed
        self._unpacker = zlib.decompressobj()

    def send_next(self, conn: Stream) -> None:
        """Send a slice, and the next one in a later turn or when the client has read this one. Close at the end."""
        if conn.closed:
            return
        data = self._unpacker.decompress(self._left, SLICE)
        self._left = self._unpacker.unconsumed_tail
        if not data:
            conn.close()
        elif conn.write(data):
            # Unlike `on_written`, an unreferenced timer does not keep the program running.
            conn.loop.call_later(0, self.send_next, conn).unref()
