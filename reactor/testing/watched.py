"""Streams and other handles that report each call and each callback to the checks of their reactor.

A `WatchedStream` runs the same code as a `Stream` and must behave exactly like one. It records the user's calls in
its `Record`.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import _getframe
from typing import Any, Self

from ..admission.proxied import ProxiedStream
from ..callbacks import OnClose
from ..errors import LifetimeOver, ReadTimeout, TooSlow
from ..hints import HasFileno, Ts
from ..kinds import guard
from ..net.datagram import DatagramSocket
from ..net.datagram_sending import DATAGRAM_COST
from ..net.ending import Connection
from ..net.endpoints import Kinds
from ..net.listener import Listener
from ..net.stream import Stream
from ..net.tls import TLSStream
from .places import place_of_caller
from .records import Record


class Planted(Exception):
    """Raised by the simulation inside a user's callback, to test how the reactor handles exceptions."""


class WatchedStream(Stream):
    """A stream that reports its calls and callbacks to the checks of its reactor."""

    __slots__ = ('record',)

    loop: Any

    def __init__(self, loop: Any, options: Any, callbacks: Any, origin: Any) -> None:
        self.record: Record = loop.oracles.streams.opened(self, origin)
        self.record.awaits_connect = callbacks.on_connect is not None
        self.record.high_water = max(1, options.high_water)
        loop.ledger.uses(options.read_timeout, options.write_timeout, options.idle_timeout)
        super().__init__(loop, options, callbacks, origin)
        self.on_close: OnClose | None = callbacks.on_close or _nothing  # needed to check how the stream ends

    def write(self, data: Any, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        taken: bool = self.loop.oracles.streams.write(self, super().write, data, (data,), on_written, args)
        return taken

    def writelines(self, buffers: Any, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        pieces = list(buffers)
        taken: bool = self.loop.oracles.streams.write(self, super().writelines, pieces, pieces, on_written, args)
        return taken

    def write_eof(self) -> None:
        self.loop.ledger.touch(self)
        # On a failed connection write_eof does nothing. The documentation does not say whether a later write raises.
        self.record.unclear |= self.closed
        if not self.closed:
            self.record.ended_by = self.record.ended_by or 'write_eof'
        self._note('write_eof')
        super().write_eof()

    def pause_reading(self) -> None:
        if _getframe(1).f_globals.get('__name__') != Stream.__module__:  # otherwise `reactor.framing` holds messages
            self._note('pause_reading')
        super().pause_reading()

    def resume_reading(self) -> None:
        self._note('resume_reading')
        super().resume_reading()

    def set_reading(self, reading: bool) -> None:
        self.loop.ledger.touch(self)
        if reading:
            self._resumed()
        elif not self.record.paused:
            self.record.paused_at = self.loop.ledger.time()
        self.record.paused = not reading  # recorded even if the connection has failed
        super().set_reading(reading)

    def _note(self, method: str) -> None:
        self.loop.ledger.kernel.note('call', -1, (self.record.number, f'{method}()'))

    def _resumed(self) -> None:
        record = self.record
        if record.paused and self.closed:
            # The stream was paused when it failed. If its socket is already closed, the unread bytes are lost.
            record.resumed_late = record.end is None or record.end.gone
        elif record.paused:
            record.resumed_at = self.loop.ledger.time()

    def set_timeouts(self, **limits: Any) -> None:
        self.loop.ledger.touch(self)
        self._note('set_timeouts')
        self.loop.ledger.uses(*limits.values())
        if not self.closed:
            self.record.limits_from = self.loop.ledger.time()
        elif self.record.options_at_end is None:
            self.record.options_at_end = self.options
        named = {f'{name}_timeout': seconds for name, seconds in limits.items()}
        added = self.loop.ledger.reached.add_limits(named, 'set_timeouts', place_of_caller(1))
        self.record.limits = {**self.record.limits, **added}
        super().set_timeouts(**limits)

    def set_write_limits(self, high: int | None = None, low: int | None = None) -> None:
        super().set_write_limits(high, low)
        self.loop.ledger.touch(self)
        end = self.loop.ledger.end_of(self)
        self.record.marks_set_at = 0 if end is None else end.sent
        if high is not None:
            self.record.high_water = max(1, high)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
    ) -> bool:
        send = super().send_file
        self.record.sends_files = True
        if self.loop.ledger.secured(self):
            secured: bool = send(file, offset, count, on_written, *args)  # `send` calls `write` with the bytes
            return secured

        def call(what: Any, on_written: Any, *args: Any) -> bool:
            return send(what, offset, count, on_written, *args)

        simulated: Any = file
        data = simulated.data[offset:][:count]
        taken: bool = self.loop.oracles.streams.write(self, call, file, (data,), on_written, args)
        return taken

    def close(self) -> None:
        record = self.record
        self.loop.ledger.touch(self)
        self._note('close')
        if not self.closed:
            self.loop.ledger.end_of(self)
            # A socket may have connected earlier in this turn. Even so, close() ends a connection that is CONNECTING.
            record.awaits_connect |= self.state == 'CONNECTING'
            record.closed_by = 'close'
            record.closed_at = self.loop.ledger.time()
            record.unread = record.begun and 'eof' not in record.events and (record.paused or record.waited)
        record.ended_by = 'close'
        super().close()
        self.loop.oracles.streams.check_closed_is_true(self, 'close')

    def abort(self, exc: BaseException | None = None) -> None:
        record = self.record
        self.loop.ledger.touch(self)
        self._note('abort')
        if not record.over:
            record.failed_before = self.closed
            record.gone_before = record.end is None or record.end.gone
            record.closed_by = record.ended_by = 'abort'
            record.aborted_with = exc
        super().abort(exc)
        self.loop.oracles.streams.check_closed_is_true(self, 'abort')

    def reset(self, exc: BaseException | None) -> None:
        self.loop.ledger.touch(self)
        self.record.limited |= isinstance(exc, LifetimeOver | TooSlow)
        # Checked here, not in on_close, because the user may pause reading before on_close is called.
        if isinstance(exc, ReadTimeout) and self.record.paused:
            self.loop.ledger.wrong(self, f'it ended with {exc!r} while reading was paused')
        super().reset(exc)

    def forget(self) -> None:
        super().forget()
        self.loop.ledger.ended(self)  # the stream could not be registered, and the user has never seen it


class WatchedTLSStream(WatchedStream, TLSStream):
    """A `WatchedStream` over TLS. Its bytes in the kernel are encrypted, so they are not compared with its writes."""

    __slots__ = ()

    def write(self, data: Any, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        return self.writelines((data,), on_written, *args)  # like `TLSStream`, but the write is recorded only once


class WatchedProxiedStream(WatchedStream, ProxiedStream):
    """A `WatchedStream` that waits for a PROXY header. The header is received data, like all bytes from the peer."""

    __slots__ = ()

    def handle_header_bytes(self, data: bytes) -> None:
        self.record.got += data
        self.record.has_header = True
        super().handle_header_bytes(data)


CALLERS = {'reactor.admission', 'reactor.loop', 'reactor.net'}  # the packages whose code calls the callbacks

WATCHED_KINDS = Kinds(WatchedStream, WatchedTLSStream, WatchedProxiedStream, DatagramSocket, guard)


def _callback(kind: str) -> property:
    slot = Connection.__dict__['on_' + kind]

    def fget(stream: WatchedStream) -> Any:
        watched: Any = slot.__get__(stream)
        if watched is None or _getframe(1).f_globals.get('__package__') in CALLERS:
            return watched
        return None if watched.fn is _nothing else watched.fn  # the program gets what it has set, and may call it

    def fset(stream: WatchedStream, fn: Callable[..., object] | None) -> None:
        stream.loop.ledger.touch(stream)
        slot.__set__(stream, None if fn is None else stream.loop.oracles.streams.watch(stream, kind, fn))

    return property(fget, fset)


def _noticed(name: str) -> property:
    slot = Connection.__dict__[name]

    def fset(stream: WatchedStream, value: Any) -> None:
        stream.loop.ledger.touch(stream)
        # A client's time limits start when the connection is made. Its socket is connected earlier in the turn, and a
        # callback in between may be slow. The origin changes when the connection is no longer CONNECTING.
        if value is not None:
            stream.record.limits_from = stream.loop.ledger.time()
        slot.__set__(stream, value)

    return property(slot.__get__, fset)


for _name in ('sock', 'origin'):
    setattr(WatchedStream, _name, _noticed(_name))

for _kind in ('connect', 'data', 'eof', 'drain', 'close', 'error'):
    setattr(WatchedStream, 'on_' + _kind, _callback(_kind))


def is_accepted(stream: WatchedStream) -> bool:
    """Return whether the stream was accepted by a listener."""
    return isinstance(stream.origin, Listener)


def _nothing(*args: Any) -> None:
    pass


class WatchedDatagramSocket(DatagramSocket):
    """A datagram socket that reports the sizes of the datagrams it accepts."""

    __slots__ = ()

    def send(self, data: Any, address: Any = None) -> bool:
        taken = super().send(data, address)
        if taken:
            self.loop.oracles.datagrams[self].take(len(data))  # type: ignore[attr-defined]
        return taken


class Datagrams:
    """The sizes of the datagrams that a socket has accepted. Each of them is waiting, was sent, or has failed."""

    def __init__(self, max_queued: int) -> None:
        self.max_queued = max_queued
        self.sizes: tuple[int, int] | None = None  # bytes: the shortest and the longest

    def take(self, size: int) -> None:
        """Record the size of an accepted datagram."""
        least, most = self.sizes or (size, size)
        self.sizes = min(least, size), max(most, size)

    def is_too_much(self, count: int, size: int) -> bool:
        """Return whether `count` waiting datagrams of `size` bytes in all are more than `max_queued` allows."""
        _, most = self.sizes or (0, 0)
        return count > 0 and size - most + (count - 1) * DATAGRAM_COST >= self.max_queued

    def may_wait(self, count: int, size: int) -> bool:
        """Return whether `count` datagrams, each within the sizes seen so far, can add up to `size` bytes."""
        least, most = self.sizes or (0, 0)
        return count * least <= size <= count * most
