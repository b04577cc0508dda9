"""How a connection ends: its close, its failures, and `on_close` as the last completion.

`Connection` is the part of a stream that every other part builds on: its slots, its state, and the ways out. A
connection ends in `finish`, which appends its last completion first and then does what cannot fail, or what can be done
again: an exhausted process never leaves half an ending. What has happened is appended to `loop.completions`, and the
user is called from there. It does not know how bytes are received or sent.
"""

from __future__ import annotations

from socket import SHUT_WR, SO_LINGER, SOL_SOCKET

from ..errors import SendFileError, WriteTimeout
from ..kernel import LOST_ERRORS
from ..loop.checks import shown
from ..loop.watcher import READ, UNHEARD, WRITE, Handle
from .addresses import show
from .states import CLOSED, CLOSING, CONNECTING, ENDED, FAILED, HALF, HALF_ENDING, LINGERING, OPEN, State
from .writer import SHUT, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ..callbacks import OnClose, OnConnect, OnData, OnDrain, OnEof, OnError
    from ..hints import socket
    from ..loop.timers import Timer
    from .options import Options
    from .timeouts import Timeouts

    class Origin(Protocol):
        """What made a stream: a listener or a connector, which is called when the stream is closed."""

        def handle_closed(self, stream: Any) -> None: ...


LAST_BYTES = 8 << 20  # that the kernel may still hold when sending has failed: more than Linux's largest buffers


class Ending:
    """What is known of the end of one connection, once there is something to know.

    by_user  the user has ended it, so a later write is the user's mistake
    exc      why sending has failed, for `on_close`
    linger   the timer that limits how long closing may take
    """

    __slots__ = ('by_user', 'exc', 'linger')

    def __init__(self, by_user: bool = False, exc: Exception | None = None) -> None:
        self.by_user: bool = by_user
        self.exc: Exception | None = exc
        self.linger: Timer | None = None


# Two that connections share and never change. While a connection is open, bytes had to wait for the peer once, so the
# peer may be sending, and closing has to wait for its end. Once it is closed, it was not the user who has ended it, and
# `on_close` was not called yet: a write is dropped, and does not raise.
WAITED = Ending()
UNREPORTED = Ending()


class Connection(Handle):
    """What every part of a `Stream` builds on."""

    __slots__ = (  # noqa: RUF023  (by what they are for)
        # what users set
        'on_connect', 'on_data', 'on_eof', 'on_drain', 'on_close', 'on_error', 'data',
        # where it is: the descriptor, the state, what waits to be sent, what is known of its end
        'sock', 'state', 'writer', 'ending',
        # what it was made with, and by what; its peer
        'options', 'origin', 'peer',
        # what only some connections have: an object each
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
        tls: Any

    # -- what users call

    def close(self) -> None:
        """Stop reading, send what waits, then close; `on_close(conn, None)` is called. Closing twice does nothing.

        All of it within `linger` seconds, else the connection is reset. Where something may be unread (reading is
        paused, or bytes had to wait for the peer), the write side is ended first and the peer's bytes are dropped until
        it ends too: closing with unread bytes would reset the connection and lose what is under way.
        """
        state = self.state
        if state is OPEN and self.writer is None and self.ending is None and self.events & READ:
            self.finish(None)  # nothing waits, and nothing is known to be unread
            self.ending = None
            return
        if state is CONNECTING or (state.half and not self.buffered):
            self.finish(None)
        elif not state.closed:
            self.begin_closing(by_user=True)
        else:
            self.on_data = None  # sending has failed: what was received before is no longer wanted
        self.refuse_writes()

    def abort(self, exc: BaseException | None = None) -> None:
        """Discard what waits and reset the connection now; `on_close(conn, exc)` is called. Twice is fine.

        exc  why, for `on_close`. A connection that has failed already keeps the reason for that

        Raises TypeError for what is not an exception.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f'exc is an exception or None, not {shown(exc)}')
        self.reset(exc)
        self.refuse_writes()

    def reset(self, exc: BaseException | None) -> None:
        """Reset the connection, with `exc` for `on_close`."""
        if self.sock is not None:
            try:
                self.sock.setsockopt(SOL_SOCKET, SO_LINGER, self.loop.kernel.reset_on_close)
            except OSError:
                pass  # then it is no longer connected, and there is nothing to reset
        self.finish(exc)

    @property
    def closed(self) -> bool:
        """True from `close`, `abort` or failure on."""
        return self.state.closed

    @property
    def buffered(self) -> int:
        """How many bytes wait to be sent. In `on_close`: how many the kernel never accepted."""
        return 0 if self.writer is None else self.writer.buffered

    # -- what the loop calls

    def handle_closed(self, exc: BaseException | None) -> None:
        """Called as the last completion of a connection: `on_close`, after which nothing of the user's is kept."""
        if self.sock is not None or self.origin is not None:
            Connection.finish(self, exc)  # the first time it found no memory or stack for all of it
        on_close = self.on_close
        called = True
        self.on_error = None  # what on_close raises is logged
        try:
            if on_close is not None:
                on_close(self, exc)  # type: ignore[arg-type]  # a `Stream`
        except (MemoryError, RecursionError) as failure:
            # Raised by the call itself and not inside the callback: the loop calls this method again.
            called = failure.__traceback__.tb_next is not None  # type: ignore[union-attr]  # it was just raised
            raise
        finally:
            if called:
                streams = self.loop.streams
                if streams.busy:
                    streams.busy.discard(self)
                if streams.proxy_headers:
                    streams.proxy_headers.pop(self, None)
                self.writer, self.ending = SHUT, None
                self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.data = None

    def handle_last_reads(self, left: int = LAST_BYTES) -> None:
        """Called as a completion after sending failed: deliver what was received before, then end."""
        if self.state is not FAILED:
            return
        if self.loop.streams.suspended.get(self):  # first what was received already
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
        """Called by the timer of `linger`."""
        self.reset(
            WriteTimeout(
                f'{show(self.peername)} did not take the last {self.buffered} bytes and the end of the '
                f'stream within {self.options.linger:g} s of close(); it was reset'
            )
        )

    def handle_both_ended(self) -> None:
        """Called as a completion after `on_eof` when our side has ended too: unless `on_eof` raised, all went well."""
        if self.state.half:
            self.finish(None)

    def handle_failed(self, exc: Exception) -> None:
        self.reset(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        """Memory or stack ran out while it was read, written or opened: bytes may be lost, so it is reset.

        When it has ended already, only its last completions are left, which can be run again.
        """
        if self.state is CLOSED:
            return False
        self.reset(exc)
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()
        self.finish(exc)

    # -- for the other parts

    @property
    def peername(self) -> Any:
        """The peer's address, for messages; see `Stream`."""
        raise NotImplementedError

    def has_ended_writing(self) -> bool:
        """Whether a write is the user's mistake: the user has ended the stream, or `on_close` was called."""
        state, ending = self.state, self.ending
        return state.user_ended or (ending.by_user if ending is not None else state is CLOSED)

    def handle_end(self) -> None:
        """The peer has ended its side."""
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
        """A recv has failed."""
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.finish(exc.with_traceback(None))

    def write_failed(self, exc: OSError, lost: bytes = b'') -> None:
        """A send has failed. What the peer sent before is still delivered, by a completion: this may be a user's write.

        lost  bytes of that write, which `buffered` counts
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
        """Memory or stack ran out when a part of what is sent may be lost: the next turn ends it with `exc`.

        Returns False, as `write` does then.
        """
        starved = self.loop.failures.starved
        starved.append(self)
        starved.append(exc)
        self.writer = self.writer or SHUT
        self.ending = self.ending or UNREPORTED
        self.state = FAILED
        return False

    def begin_closing(self, by_user: bool) -> None:
        """Send what waits, end our side, and wait for the peer's end, all within `linger` seconds."""
        ending = Ending(by_user)
        ending.linger = self.loop.timers.later(self.options.linger, Connection.handle_linger_over, self)
        self.ending = ending
        self.state = CLOSING
        self.on_data = None  # what still comes is read and dropped
        timeouts, self.timeouts = self.timeouts, None  # first: a look that cannot be taken back does nothing then
        if timeouts is not None:
            self.loop.timers.buckets.discard(self, timeouts.second)  # type: ignore[arg-type]  # a `Stream`
        if self.buffered:
            self.loop.watchers.set_events(self, WRITE)
        else:
            self.shut_down()

    def shut_down(self) -> None:
        """Everything is sent: end our side of the stream."""
        state = self.state
        self.writer = SHUT
        self.state = HALF_ENDING if state.half else LINGERING if self.ending is not None else ENDED
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError as exc:
            if exc.errno in LOST_ERRORS:
                self.loop.watchers.evict(self)  # reading will not show it: epoll does not report it
                return
            # else the connection is gone already, and reading will show it
        if state.half:
            self.finish(None)
        else:
            self.loop.watchers.set_events(self, READ if self.state is LINGERING else self.events & ~WRITE)

    def refuse_writes(self) -> None:
        """The user has ended it: a later write is the user's mistake."""
        ending = self.ending
        if ending is None or ending is WAITED or ending is UNREPORTED:
            self.ending = None if self.state is CLOSED else Ending(by_user=True)
        else:
            ending.by_user = True

    def finish(self, exc: BaseException | None) -> None:
        """Close the socket now, and have `on_close(conn, exc)` called as a completion, which is appended first.

        Each further step does nothing the second time, so it can be called again after a failure. All of it is in one
        function: a call for the steps costs a short connection 0.5 % of its instructions.
        """
        loop, state, ending = self.loop, self.state, self.ending
        over = state is CLOSED
        if not over:
            if state is FAILED and ending.exc is not None:  # type: ignore[union-attr]  # it has one when it has failed
                exc = ending.exc  # type: ignore[union-attr]  # sending failed first, and that is what ended it
            loop.completions.append((self, Connection.handle_closed, (exc,)))
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
            loop.watchers.remove(self)
            sock = self.sock
            if sock is not None:
                try:
                    sock.close()
                except OSError:
                    pass  # some systems report a reset here; the descriptor is gone all the same
                self.sock = None  # type: ignore[assignment]  # as before it is connected
            origin = self.origin
            if origin is not None:
                origin.handle_closed(self)
                self.origin = None
        except (MemoryError, RecursionError):
            self.events = self.events and UNHEARD
            if over:
                raise  # else `handle_closed` does the rest

    def forget(self) -> None:
        """Give back what it holds, and never call its user: it could not be opened."""
        self.on_connect = self.on_data = self.on_eof = self.on_drain = self.on_close = self.origin = None
        self.finish(None)
