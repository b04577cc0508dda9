"""The live page: charts of running reactors in a browser, updated every second.

A browser gets the page once, and then samples as server-sent events (WHATWG HTML, 9.2).

- Counters are read only while at least one browser is connected.
- A browser that reads too slowly is disconnected; other browsers do not wait for it.
- With a flight recorder, the page offers its trace as a download.
- Worker names and code locations are sent as JSON and displayed as text, so they cannot inject markup. The page may
  run no scripts except its own.
"""

from __future__ import annotations

import json
import os
import platform
from collections import deque
from typing import Any

from .. import Listener, Reactor, Stream, Timer, __version__
from ..loop.log import log
from ..loop.stats import Stats
from .counters import Snapshot, Source
from .counters import source as source_of
from .downloads import Downloads
from .recorder import FlightRecorder
from .responder import Request, listen_http
from .samples import FIELDS, Sampler

EVERY = 1.0  # seconds between two samples
HISTORY = 300  # samples: a browser that loads the page sees the last five minutes
MOST_VIEWERS = 16
RECONNECT = 1000  # milliseconds until a browser that lost its connection reconnects
PAGE = os.path.join(os.path.dirname(__file__), 'live.html')
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (('Referrer-Policy', 'no-referrer'), ('Cross-Origin-Resource-Policy', 'same-origin'))


def serve_page(
    r: Reactor,
    host: str | None = '127.0.0.1',
    port: int = 0,
    source: Source | None = None,
    *,
    about: str = '',
    recorder: FlightRecorder | None = None,
) -> Listener:
    """Serve the live page at `http://` and the `address` of the returned listener.

    There is no password: every client that can connect can see the counters, and the trace of the recorder. On
    loopback, the host in the URL must be an address or `localhost`, so that other web sites cannot read the counters
    through DNS rebinding.

    At most 16 browsers may be connected. The page does not keep `run` running, and costs nothing while no browser is
    connected.

    Args:
        r: The reactor that serves the page.
        host: Host name or address to listen on, as for `listen_tcp`.
        port: Port number; 0 picks a free one.
        source: Source of the counters, see `reactor.observe`. Default: the counters of `r`.
        about: Text for the foot of the page, such as the name of the program.

        recorder: The flight recorder of `r` whose trace can be downloaded, at most twice at once. A request that
            another site has caused is refused. Workers have recorders and control sockets of their own.

    Returns:
        The listener. After it is closed, no browser can connect; browsers that are connected stay connected.

    Raises:
        OSError: As for `listen_tcp`.
    """
    return LivePage(r, host, port, source, about=about, recorder=recorder).listener


class LivePage:
    """The live page of one listener. Callers use `listener`, `url`, `record` and `end`."""

    def __init__(
        self,
        r: Reactor,
        host: str | None,
        port: int,
        source: Source | None = None,
        *,
        about: str = '',
        recorder: FlightRecorder | None = None,
    ) -> None:
        self._r = r
        self._source = source or source_of(r)
        self._about = ' '.join(filter(None, (about, f'reactor {__version__}, Python {platform.python_version()}.')))
        self._viewers: set[Stream] = set()
        self._downloads = Downloads(r, recorder, HEADERS)
        self._history: deque[list[Any]] = deque(maxlen=HISTORY)
        self._timer: Timer | None = None
        self._over: str | None = None
        self._recording = False
        self._last = b''  # the last sample, as an event
        self._sampler = Sampler(self._counters)
        self.listener: Listener = listen_http(r, host, port, self._answer)

    @property
    def url(self) -> str:
        """The address of the page for a browser on this machine."""
        host, port = self.listener.address[:2]
        host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
        return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

    def end(self, text: str) -> None:
        """Disconnect all browsers. The page then shows `text` and the last sample. Further calls do nothing."""
        if self._over is None:
            self._over = text
            if self._timer is not None:
                self._tick()
            self._recording = False
            self._stop_sampling()
            self._dismiss(text)

    def record(self) -> None:
        """Take samples also while no browser is connected, until `end`. A browser that connects later shows them."""
        self._recording = True
        self._start_sampling()

    def _start_sampling(self) -> None:
        if self._timer is None:
            self._sampler.look()
            self._timer = self._r.call_every(EVERY, self._tick)
            self._timer.unref()

    def _stop_sampling(self) -> None:
        if not (self._viewers or self._recording) and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dismiss(self, text: str) -> None:
        for viewer in list(self._viewers):
            if not viewer.closed:  # the program may have closed it, because `handles()` lists it
                viewer.write(event(text, name='end'))
                viewer.close()
            self._on_close(viewer, None)

    def _counters(self) -> dict[str, Snapshot]:
        """The counters of the source, without the connections of this page."""
        counters, mine = self._source(), os.getpid()
        own = (*self._viewers, *self._downloads.conns)
        viewers = sum(conn.sock is not None for conn in own)  # the counters include no closed ones
        for name, one in counters.items():
            if one['pid'] == mine:
                counters = {**counters, name: {**one, 'incoming': one['incoming'] - viewers}}
        return counters

    def _answer(self, request: Request) -> None:
        if request.path == '/':
            nonce = os.urandom(16).hex()
            # Read through the loader, because the package may be in a zip file; every file loader has `get_data`.
            page = __spec__.loader.get_data(PAGE).replace(b'NONCE', nonce.encode())  # type: ignore[union-attr]
            policy = ('Content-Security-Policy', POLICY.format(nonce))
            request.reply(200, 'text/html; charset=utf-8', page, (policy, *HEADERS))
        elif request.path == '/trace':
            self._downloads.answer(request)
        elif request.path != '/events':
            request.reply(404, 'text/plain', b'not found; the pages are /, /events and /trace\n')
        elif len(self._viewers) >= MOST_VIEWERS:
            request.reply(503, 'text/plain', b'too many browsers are connected; close one\n')
        else:
            self._add_viewer(request)

    def _add_viewer(self, request: Request) -> None:
        viewer = request.stream('text/event-stream', HEADERS)
        if viewer is None:
            return
        viewer.__class__ = Viewer
        viewer.on_close = self._on_close
        self._viewers.add(viewer)
        if self._over is None:
            self._start_sampling()
        hello = {
            'fields': FIELDS,
            'rows': self._after(request.headers.get('last-event-id', '')),
            'seconds': HISTORY,
            'lag_bounds': Stats.lag_bounds,
            'about': self._about,
            'trace': self._downloads.seconds,
        }
        viewer.write(b'retry: %d\n\n' % RECONNECT + event(hello, name='hello'))
        if self._over is not None:
            viewer.write(self._last)
            self._dismiss(self._over)

    def _after(self, last: str) -> list[list[Any]]:
        """Return the samples that came after the sample with the id `last`, the last one that the browser received."""
        seen = int(last) if last.isdecimal() and last.isascii() and len(last) < 20 else 0
        return [row for row in self._history if row[0] > seen]

    def _tick(self) -> None:
        try:
            self._sample()
        except Exception as exc:  # raised by the source; the rest of the program must not be affected
            log('error', 'exception while reading the counters for the live page', exc=exc)
            self._dismiss('The counters could not be read; see the log of the program')

    def _sample(self) -> None:
        sample = self._sampler.sample()
        row = sample['row']
        while self._history and self._history[0][0] < row[0] - HISTORY * EVERY * 1000:
            self._history.popleft()
        self._history.append(row)
        self._last = message = event(sample, number=row[0])
        for viewer in list(self._viewers):
            if not (viewer.closed or viewer.write(message)):
                viewer.abort()  # at the high-water mark, about a minute of samples waits to be sent

    def _on_close(self, viewer: Stream, exc: BaseException | None) -> None:
        self._viewers.discard(viewer)
        self._stop_sampling()


class Viewer(Stream):
    """A connection to a browser. When the reactor is closed, the browser is sent an 'end' event first."""

    __slots__ = ()

    def reset(self, exc: BaseException | None) -> None:
        if exc is None and not self.closed:  # otherwise the connection has failed, or the 'end' event has been sent
            self.write(event('The program has ended', name='end'))
            self.close()
        Stream.reset(self, exc)

    def abort(self, exc: BaseException | None = None) -> None:
        """Reset the connection without an 'end' event: the program keeps running, and the browser reconnects."""
        self.__class__ = Stream  # type: ignore[assignment]
        self.abort(exc)


def event(data: Any, name: str = '', number: int | None = None) -> bytes:
    """Format one server-sent event. `json.dumps` escapes line ends, so the data cannot begin another event."""
    head = (f'event: {name}\n' if name else '') + (f'id: {number}\n' if number is not None else '')
    return f'{head}data: {json.dumps(data, separators=(",", ":"))}\n\n'.encode()
