"""The live page: a window in a browser on running reactors, drawn again every second.

Owns who looks, and what they are sent: the page once, then samples as server-sent events (WHATWG HTML, 9.2). Knows
nothing of what the counters mean. The rules: nobody looks, nothing is asked for; who takes too long to read is dropped,
and no one waits for him; and whatever a name or a place has in it goes out as JSON and is shown as text, never as part
of the page, which may run its own script and nothing else.
"""

from __future__ import annotations

import json
import os
import platform
from collections import deque
from typing import Any

from .. import Listener, Reactor, Stream, __version__
from ..loop.log import log
from ..loop.stats import Stats
from .counters import Snapshot, Source
from .counters import source as source_of
from .responder import listen_http
from .samples import FIELDS, Sampler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import Timer
    from .responder import Request

EVERY = 1.0  # seconds between two samples
HISTORY = 300  # samples, so that who loads the page again sees the last five minutes
MOST_VIEWERS = 16
RECONNECT = 1000  # milliseconds until a browser that lost its connection comes again
PAGE = os.path.join(os.path.dirname(__file__), 'live.html')
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (('Referrer-Policy', 'no-referrer'), ('Cross-Origin-Resource-Policy', 'same-origin'))


def serve_page(
    r: Reactor, host: str | None = '127.0.0.1', port: int = 0, source: Source | None = None, *, about: str = ''
) -> Listener:
    """Serve the live page; its address is `http://` and the `address` of the returned listener.

    host, port  as for `listen_tcp`. Whoever reaches it sees the counters: there is no password. On loopback it is shown
                to who asks for an address or `localhost`, and not to what another site's name leads here
    source      of the counters, see `reactor.observe`; by default those of `r`
    about       a sentence at the foot of the page, such as the name of the program

    It keeps nothing running and needs nothing while nobody looks; at most 16 may look at once. Close the listener, and
    nobody new can. Raises as `listen_tcp` does.
    """
    return LivePage(r, host, port, source, about=about).listener


class LivePage:
    """The page of one listener; `listener`, `url` and `end` are for those who made it, the rest is its own."""

    def __init__(
        self, r: Reactor, host: str | None, port: int, source: Source | None = None, *, about: str = ''
    ) -> None:
        self._r = r
        self._source = source or source_of(r)
        self._about = ' '.join(filter(None, (about, f'reactor {__version__}, Python {platform.python_version()}.')))
        self._viewers: set[Stream] = set()
        self._history: deque[list[Any]] = deque(maxlen=HISTORY)
        self._timer: Timer | None = None
        self._over: str | None = None
        self._sampler = Sampler(self._told)
        self.listener: Listener = listen_http(r, host, port, self._answer)

    @property
    def url(self) -> str:
        """Where to point a browser of this machine."""
        host, port = self.listener.address[:2]
        host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
        return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'

    def end(self, text: str) -> None:
        """Tell who looks that it is over, and why; the page keeps its last picture and says so. Once, and for good."""
        if self._over is None:
            self._over = text
            if self._viewers:
                self._tick()
            self._dismiss(text)

    def _dismiss(self, text: str) -> None:
        for viewer in list(self._viewers):
            if not viewer.closed:  # by the program, which finds it among its handles
                viewer.write(event(text, name='end'))
                viewer.close()
            self._on_close(viewer, None)

    def _told(self) -> dict[str, Snapshot]:
        """What the source tells, without the connections of this page."""
        told, mine = self._source(), os.getpid()
        here = sum(viewer.sock is not None for viewer in self._viewers)  # the others are counted off already
        for name, counters in told.items():
            if counters['pid'] == mine:
                told = {**told, name: {**counters, 'incoming': counters['incoming'] - here}}
        return told

    def _answer(self, request: Request) -> None:
        if request.path == '/':
            nonce = os.urandom(16).hex()
            # By the loader, which also reads it from a zip file; each that finds modules in files has `get_data`.
            page = __spec__.loader.get_data(PAGE).replace(b'NONCE', nonce.encode())  # type: ignore[union-attr]
            policy = ('Content-Security-Policy', POLICY.format(nonce))
            request.reply(200, 'text/html; charset=utf-8', page, (policy, *HEADERS))
        elif request.path != '/events':
            request.reply(404, 'text/plain', b'here are / and /events\n')
        elif len(self._viewers) >= MOST_VIEWERS:
            request.reply(503, 'text/plain', b'too many look already\n')
        else:
            self._welcome(request)

    def _welcome(self, request: Request) -> None:
        viewer = request.stream('text/event-stream', HEADERS)
        if viewer is None:
            return
        viewer.__class__ = Viewer
        viewer.on_close = self._on_close
        self._viewers.add(viewer)
        if self._timer is None:
            self._sampler.look()
            self._timer = self._r.call_every(EVERY, self._tick)
            self._timer.unref()
        hello = {
            'fields': FIELDS,
            'rows': self._after(request.headers.get('last-event-id', '')),
            'seconds': HISTORY,
            'lag_bounds': Stats.lag_bounds,
            'about': self._about,
        }
        viewer.write(b'retry: %d\n\n' % RECONNECT + event(hello, name='hello'))
        if self._over is not None:
            self._dismiss(self._over)

    def _after(self, last: str) -> list[list[Any]]:
        """The samples that a browser has not seen which saw the one with the id `last`."""
        seen = int(last) if last.isdecimal() and last.isascii() and len(last) < 20 else 0
        return [row for row in self._history if row[0] > seen]

    def _tick(self) -> None:
        try:
            self._sample()
        except Exception as exc:  # the source's; it is not to end more than this page
            log('error', 'exception while reading the counters for the live page', exc=exc)
            self._dismiss('The counters could not be read; the log says why')

    def _sample(self) -> None:
        sample = self._sampler.sample()
        row = sample['row']
        while self._history and self._history[0][0] < row[0] - HISTORY * EVERY * 1000:
            self._history.popleft()
        self._history.append(row)
        told = event(sample, number=row[0])
        for viewer in list(self._viewers):
            if not (viewer.closed or viewer.write(told)):
                viewer.abort()  # beyond the high-water mark a minute waits, and what the system holds besides

    def _on_close(self, viewer: Stream, exc: BaseException | None) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Viewer(Stream):
    """A connection of a browser. The reactor resets it when it is closed, and the browser is sent the end before.

    An exit callback would do the same, and stay with the reactor when the page is closed before.
    """

    __slots__ = ()

    def reset(self, exc: BaseException | None) -> None:
        if exc is None and not self.closed:  # else it has failed, or it was sent the end already
            self.write(event('The program has ended', name='end'))
            self.close()
        Stream.reset(self, exc)

    def abort(self, exc: BaseException | None = None) -> None:
        """Reset it without that: the program goes on, and the browser comes again."""
        self.__class__ = Stream  # type: ignore[assignment]
        self.abort(exc)


def event(data: Any, name: str = '', number: int | None = None) -> bytes:
    """One server-sent event. JSON has no line ends of its own, so nothing in it can begin another."""
    head = (f'event: {name}\n' if name else '') + (f'id: {number}\n' if number is not None else '')
    return f'{head}data: {json.dumps(data, separators=(",", ":"))}\n\n'.encode()
