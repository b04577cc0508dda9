"""How a connection ends: by `close`, by `abort` or by a failure, and always with `on_close` as its last completion.

`Connection` is the base of a stream: its slots, its state, and the ways it can end. All these ways lead to `finish`,
which first appends the last completion. The other steps of `finish` cannot fail or can be repeated, so running out of
memory never leaves a connection half ended. Of the user's callbacks, only `on_eof` and `on_close` are called here.
"""

from __future__ import annotations

from socket import SHUT_WR, SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EXHAUSTION, SendFileError, WriteTimeout
from ..hints import socket
from ..kernel.platforms import LOST_ERRORS
from ..loop.checks import shown
from ..loop.timers import Timer
from ..loop.watcher import READ, UNHEARD, WRITE, Handle
from .addresses import show
from .options import Options
from .session import TLSSession
from .states import CLOSED, CLOSING, CONNECTING, ENDED, FAILED, HALF, HALF_ENDING, LINGERING, OPEN, State
from .timeouts import Timeouts
from .writer import SHUT, Writer

if TYPE_CHECKING:
    from ..callbacks import OnClose, OnConnect, OnData, OnDrain, OnEof, OnError

# How many bytes are still read after sending has failed: more than the largest buffers on Linux hold.
LAST_BYTES = 8 << 20


class Origin(Protocol):
    """The listener or connector that made a stream. Its `handle_closed` is called when the stream is closed."""

    def handle_closed(self, stream: Any) -> None: ...


class Ending:
    """The facts about the end of one connection.

    Attributes:
        by_user: The user has ended the connection, so a later write is the user's mistake.
        exc: The error of a failed send, for `on_close`.
        linger: The timer that limits how long closing may take.
    """

    __slots__ = ('by_user', 'exc', 'linger')

    def __init__(self, by_user: bool = False, exc: Exception | None = None) -> None:
        self.by_user: bool = by_user
        self.exc: Exception | None = exc
        self.linger: Timer | None = None


# All connections share these two objects, which never change. WAITED in an open connection: bytes had to wait for the
# peer at some time, so the peer may be sending, and closing waits for its end of file. UNREPORTED in a closed one: the
# user has not ended it, and `on_close` has not been called yet. A write is then dropped and does not raise.
WAITED = Ending()
UNREPORTED = Ending()


class Connection(Handle):
    """The base of every `Stream`."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # set by users
        'on_connect', 'on_data', 'on_eof', 'on_drain', 'on_close', 'on_error', 'data',
        # its socket, its state, the bytes waiting to be sent, and the facts about its end
        'sock', 'state', 'writer', 'ending',
        # its options, the listener or connector that made it, and its peer
        'options', 'origin', 'peer',
        # objects that only some connections have
        'timeouts', 'tls',
    )  # fmt: skip

    if TYPE_CHECKING:
        on_connect: OnConnect | None
        on_data: OnData | None
        on_eof: OnEof | None
        on_drain: OnDrain | None
        on_close: OnClose | None
        on_error: OnError | None
        data: Any
        sock: socket
        state: State
        writer: Writer | None
        ending: Ending | None
        options: Options
        origin: Origin | None
        peer: Any
        timeouts: Timeouts | None
        tls: TLSSession | None

    # -- methods for users

    def close(self) -> None:
        """Stop reading, send the buffered bytes, then close. A second call does nothing.

        `on_close(conn, None)` is called later, in the completions phase. If closing takes longer than `linger` seconds,
        the connection is reset and `on_close` gets a `WriteTimeout`. A connection that is not yet made is abandoned
        with its bytes, which `write_eof` would send.

        Closing a socket with unread bytes would reset the connection, and bytes on their way to the peer would be lost.
        So if there may be unread bytes, because reading is paused or because a write had to wait, our side is ended
        first, and the peer's bytes are dropped until the peer ends its side too.
        """
        state = self.state
        if state is OPEN and self.writer is None and self.ending is None and self.events & READ:
            self.finish(None)  # no bytes are waiting to be sent, and none are known to be unread
            self.ending = None
            return
        if state is CONNECTING or (state.half and not self.buffered):
            self.finish(None)
        elif not state.closed:
            self.begin_closing(by_user=True)
        else:
            self.on_data = None  # sending has failed, and bytes received before that are no longer wanted
        self.refuse_writes()

    def abort(self, exc: BaseException | None = None) -> None:
        """Discard the buffered bytes and reset the connection now. A second call does nothing.

        Args:
            exc: The reason, passed to `on_close(conn, exc)`, which is called later in the completions phase. If the
                connection has failed already, `on_close` gets the error of that failure instead.

        Raises:
            TypeError: `exc` is not an exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f'exc must be an exception or None, not {shown(exc)}')
        self.reset(exc)
        self.refuse_writes()

    def reset(self, exc: BaseException | None) -> None:
        """Reset the connection and pass `exc` to `on_close` (internal; users call `abort`)."""
        if self.sock is not None:
            try:
                self.sock.setsockopt(SOL_SOCKET, SO_LINGER, self.loop.kernel.reset_on_close)
            except OSError:
                pass  # the socket is no longer connected, so there is nothing to reset
        self.finish(exc)

    @property
    def closed(self) -> bool:
        """True once you have called `close` or `abort`, or the connection has failed."""
        return self.state.closed

    @property
    def buffered(self) -> int:
        """How many bytes are waiting to be sent. In `on_close`: how many bytes the kernel never accepted."""
        return 0 if self.writer is None else self.writer.buffered

    # -- methods for the loop

    def handle_closed(self, exc: BaseException | None = None) -> None:
        """Called as the last completion of a connection: call `on_close`, then drop the user's callbacks and data."""
        if self.sock is not None or self.origin is not None:
            Connection.finish(self, exc)  # memory or stack ran out before the first call of `finish` was done
        on_close = self.on_close
        called = True
        self.on_error = None  # an exception in on_close is logged
        try:
            if on_close is not None:
                on_close(self, exc)  # type: ignore[arg-type]  # a `Stream`
        except EXHAUSTION as failure:
            # If the call itself raised the error, and not the callback's code, the loop repeats this method.
            called = failure.__traceback__.tb_next is not None  # type: ignore[union-attr]  # it was just raised
            raise
        finally:
            if called:
                streams = self.loop.streams
                if streams.proxy_headers:
                    streams.proxy_headers.pop(self, None)
                self.writer, self.ending = SHUT, None
                self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.data = None
                if streams.busy:  # last: when this runs out of stack it is repeated, and then `on_close` is None
                    self._end_request(exc)

    def _end_request(self, exc: BaseException | None) -> None:
        began, counters = self.loop.streams.busy.pop(self, None), self.loop.counters
        if began is None:
            return
        if exc is None:
            counters.count_request(self.loop.timers.clock() - began)
        else:
            counters.requests_failed += 1

    def handle_last_reads(self, left: int = LAST_BYTES) -> None:
        """Called as a completion after a failed send: deliver the bytes received before it, then end the connection."""
        if self.state is not FAILED:
            return
        if self.loop.streams.suspended.get(self):  # first, a framing passes on the messages that it holds
            self.loop.completions.append((self, type(self).handle_last_reads, (left,)))
            return
        if left > 0 and self.events & READ:
            before = self.loop.counters.reads
            self.loop.completions.append((self, type(self).handle_last_reads, (left - self.options.read_size,)))
            self.handle_read()
            if self.loop.counters.reads != before or self.sock is None:
                return
        self.finish(None)

    def handle_linger_over(self) -> None:
        """Called by the timer of `linger`: closing has taken too long."""
        missing = f'accept the last {self.buffered} bytes' if self.buffered else 'end its side'
        self.reset(
            WriteTimeout(
                f'{show(self.peername)} did not {missing} within linger={self.options.linger:g} s of close(); '
                'the connection was reset'
            )
        )

    def handle_both_ended(self) -> None:
        """Called as a completion after `on_eof`, if our side has ended too: close, unless `on_eof` raised."""
        if self.state.half:
            self.finish(None)

    def handle_failed(self, exc: Exception) -> None:
        self.reset(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        """Called when memory or stack ran out while the connection was being read, written or opened.

        Bytes may be lost, so the connection is reset. Returns False if the connection has ended already: only its last
        completions are left then, and they can be repeated.
        """
        if self.state is CLOSED:
            return False
        self.reset(exc)
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()
        self.finish(exc)

    # -- methods for other modules

    @property
    def peername(self) -> Any:
        """The peer's address, for error messages; see `Stream`."""
        raise NotImplementedError

    def has_ended_writing(self) -> bool:
        """Return whether a write is the user's mistake: the user has ended the stream, or `on_close` was called."""
        state, ending = self.state, self.ending
        return state.user_ended or (ending.by_user if ending is not None else state is CLOSED)

    def handle_end(self) -> None:
        """Called when a recv has found end of file: the peer has ended its side."""
        on_eof, state = self.on_eof, self.state
        if not state.receives:
            self.finish(None)
        elif on_eof is not None:
            if state is ENDED:
                self.loop.completions.append((self, Connection.handle_both_ended, ()))
            self.state = HALF if state is OPEN else HALF_ENDING
            self.loop.watchers.set_events(self, self.events & ~READ)
            on_eof(self)  # type: ignore[arg-type]  # a `Stream`
        elif self.buffered:
            self.begin_closing(by_user=state.user_ended)
        else:
            self.finish(None)

    def read_failed(self, exc: OSError) -> None:
        """Called when a recv has failed."""
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.finish(exc.with_traceback(None))

    def write_failed(self, exc: OSError, lost: bytes = b'') -> None:
        """Called when a send has failed. Bytes that the peer sent before that are still delivered.

        A completion delivers them, because the send may come from a user's write, during which no callback may run.

        Args:
            exc: The error.
            lost: The bytes that were to be sent. From here on, `buffered` counts them.
        """
        if self.writer is None:
            self.writer = Writer()
            self.writer.extend((lost,), None, ())
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        if isinstance(exc, SendFileError):
            self.reset(exc.with_traceback(None))
            return
        ending = Ending(self.has_ended_writing(), exc.with_traceback(None))
        if self.ending is not None:
            ending.linger = self.ending.linger
        self.ending = ending
        self.state = FAILED
        self.loop.watchers.set_events(self, self.events & READ)
        self.loop.completions.append((self, type(self).handle_last_reads, ()))

    def lose(self, exc: Exception) -> bool:
        """Called when memory or stack ran out and bytes may be lost: the next turn ends the connection with `exc`.

        Returns False, which `write` then returns too.
        """
        starved = self.loop.failures.starved
        starved.append(self)
        starved.append(exc)
        self.writer = self.writer or SHUT
        self.ending = self.ending or UNREPORTED
        self.state = FAILED
        return False

    def begin_closing(self, by_user: bool) -> None:
        """Send the buffered bytes, end our side, and wait for the peer to end its side, all within `linger` seconds."""
        ending = Ending(by_user)
        ending.linger = self.loop.timers.later(self.options.linger, Connection.handle_linger_over, self)
        self.ending = ending
        self.state = CLOSING
        self.on_data = None  # further input is read and dropped
        timeouts, self.timeouts = self.timeouts, None  # None first: if the check cannot be cancelled, it does nothing
        if timeouts is not None:
            self.loop.timers.buckets.discard(self, timeouts.second)  # type: ignore[arg-type]  # a `Stream`
        if self.buffered:
            self.loop.watchers.set_events(self, WRITE)
        else:
            self.shut_down()

    def shut_down(self) -> None:
        """End our side of the stream, now that all bytes are sent."""
        state = self.state
        self.writer = SHUT
        self.state = HALF_ENDING if state.half else LINGERING if self.ending is not None else ENDED
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError as exc:
            if exc.errno in LOST_ERRORS:
                self.loop.watchers.evict(self)  # epoll does not report a lost descriptor, so no read would notice it
                return
            # Any other error means that the connection has ended, which reading will report.
        if state.half:
            self.finish(None)
        else:
            self.loop.watchers.set_events(self, READ if self.state is LINGERING else self.events & ~WRITE)

    def refuse_writes(self) -> None:
        """Called when the user has ended the connection: from now on, writes raise."""
        ending = self.ending
        if ending is None or ending is WAITED or ending is UNREPORTED:
            self.ending = None if self.state is CLOSED else Ending(by_user=True)
        else:
            ending.by_user = True

    def finish(self, exc: BaseException | None) -> None:
        """Append the completion that calls `on_close(conn, exc)`, then close the socket (internal).

        Each later step does nothing when it is repeated, so this can be called again after a failure. It is one
        function because one more call would cost a short connection 0.5 % of its instructions.
        """
        loop, state, ending = self.loop, self.state, self.ending
        over = state is CLOSED
        if not over:
            if state is FAILED and ending.exc is not None:  # type: ignore[union-attr]  # not None here
                exc = ending.exc  # type: ignore[union-attr]  # sending failed first, and that has ended the connection
            loop.completions.append((self, Connection.handle_closed, () if exc is None else (exc,)))
            if ending is None and not state.user_ended:
                self.ending = UNREPORTED
            if self.writer is None:
                self.writer = SHUT
            self.state = CLOSED
        elif self.sock is None and self.origin is None:
            return
        try:
            timeouts = self.timeouts
            if timeouts is not None:
                loop.timers.buckets.discard(self, timeouts.second)  # type: ignore[arg-type]  # a `Stream`
                self.timeouts = None
            if ending is not None and ending.linger is not None:
                ending.linger.cancel()
            sock = self.sock
            loop.watchers.remove(self, None if sock is None else sock.fileno())
            if sock is not None:
                if self.peer is None and (self.on_close is not None or loop.phase_timer.watching):
                    self.peer = self.peername  # for `on_close` and reports: a closed socket has no peer
                try:
                    sock.close()
                except OSError as exc:  # some systems report a reset here; the descriptor is closed all the same
                    loop.spins.close_failed(exc)
                self.sock = None  # type: ignore[assignment]  # None, as before connecting
            origin = self.origin
            if origin is not None:
                origin.handle_closed(self)
                self.origin = None
        except EXHAUSTION:
            self.events = self.events and UNHEARD
            if over:
                raise  # otherwise `handle_closed` does the rest

    def forget(self) -> None:
        """Close a connection that could not be opened, without calling any callback (internal)."""
        self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.origin = None
        self.finish(None)
