"""The write side of a stream: `write` and its kin, and what is sent when the kernel has room.

A write is sent at once as far as the kernel takes it. The rest waits in a `Writer` (`writer.py`), and so does each
write after it, until the selector reports room. `conn.writer is None` is the fast path's only test: wherever a write is
not a plain one, because bytes wait or because the stream is connecting, ending or closed, there is a writer or `SHUT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

from ..errors import ConnectionClosed, WriteBufferFull
from ..hints import Buffer, HasFileno, Ts
from ..kernel import HAS_SENDMSG, send_first
from ..loop.watcher import WRITE
from .addresses import show
from .ending import UNREPORTED, WAITED, Connection, Ending
from .files import FilePart, file_part
from .states import CONNECTING, ENDING, FAILED, HALF_ENDING, State
from .writer import SHUT, Writer, check_buffers, flat

TYPE_CHECKING = False


class Sender(Connection):
    """The part of a `Stream` that sends."""

    __slots__ = ()

    if TYPE_CHECKING:
        ending: Ending | None
        state: State
        writer: Writer | None

    # -- what users call

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        """Send bytes, now as far as the kernel takes them, the rest when it can; never blocks.

        data        bytes are kept by reference; of a bytearray or memoryview, what cannot be sent at once is copied
        on_written  called as `on_written(conn, *args)` when the kernel has accepted all bytes up to here, in the order
                    of the writes, never inside this call, and never if the connection fails first

        Returns False when `high_water` or more bytes wait now: hold back until `on_drain`. Also when the connection
        has failed, which `on_close` is about to report; the bytes are dropped then.
        Raises `ConnectionClosed` after your own `close`, `abort` or `write_eof` and after `on_close`; TypeError for
        what is not bytes. A write that raises, RecursionError and MemoryError too, has sent nothing. Where one of these
        comes when some of the bytes may be sent, this returns False and `on_close` is called with it.
        """
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        if self.writer is not None or type(data) is not bytes or not data:
            return self._queue((data,), on_written, args)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.write_failed(exc, data)
            return False
        except MemoryError as exc:  # perhaps of the result, and the bytes are sent
            return self.lose(exc)
        try:
            loop = self.loop
            counters = loop.counters
            counters.writes += 1
            counters.bytes_out += sent
            if self.timeouts is not None:
                self.timeouts.sent_at = loop.timers.clock()
            if sent != len(data):
                return self._keep_rest(data, sent, on_written, args)
            if on_written is not None:
                loop.completions.append((self, on_written, args))
        except (MemoryError, RecursionError) as exc:
            if not sent:
                self.writer = None
                raise
            # As in `lose`, but written out: there may be no stack left for a call.
            starved = self.loop.failures.starved
            starved.append(self)
            starved.append(exc)
            self.writer, self.ending, self.state = self.writer or SHUT, self.ending or UNREPORTED, FAILED
            return False
        return True

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        """Send several buffers with one system call; otherwise as `write`."""
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        check_buffers(buffers)
        return self._queue(buffers, on_written, args)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
    ) -> bool:
        """Send bytes of a file, by the system and not through our memory where it can (`sendfile`).

        file    open for reading, a regular file; only its descriptor is used, of which a duplicate is kept: it may be
                closed after this call. Its position does not count and, except on Windows, does not move
        offset  the first byte to send
        count   how many, None: to the end that the file has now. They are promised: should the file become shorter
                meanwhile, the connection is reset with `SendFileError`

        The rest is as `write` has it: the order with other writes, `on_written`, the end. What of the file was not sent
        counts in `buffered` and towards the water marks, but not towards `max_buffered`. It is read as the peer takes
        it, which blocks as long as the disk does. `linger` holds for files too: close after a long one in `on_written`.
        Raises ValueError for what is not a regular file or does not have these bytes, and OSError from its descriptor.
        """
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        return self._queue((file_part(self.loop.kernel, file, offset, count),), on_written, args)

    def write_eof(self) -> None:
        """End the write side after what waits; the peer reads end of file, and we go on reading what it sends.

        The safe end for a peer that may still be sending: `write_eof`, then wait for `on_eof`. When both sides have
        ended, the connection closes by itself. Does nothing when it is ended or closed already.
        """
        state = self.state
        if not state.takes_writes or self.has_ended_writing():
            return
        if state is CONNECTING:
            self.ending = Ending(by_user=True)
            return
        self.ending = None  # bytes that had to wait matter to `close` alone, which waits for the peer in any case now
        if self.writer is None:
            self.shut_down()
        elif self.writer is not SHUT:
            self.state = HALF_ENDING if state.half else ENDING

    # -- what the loop calls

    def handle_write(self, dispatched: bool = True) -> None:
        """Send what waits, as much as the kernel takes at once.

        dispatched: the selector has reported room. False: a write tries at once, and finding none is no stall.
        """
        writer = self.writer
        assert writer is not None
        counters = self.loop.counters
        buffers = writer.buffers()
        if buffers:
            try:
                if type(buffers) is FilePart:
                    sent = buffers.send_some(self.sock)
                else:
                    sent = self.sock.sendmsg(buffers) if HAS_SENDMSG else send_first(self.sock, buffers)
            except BlockingIOError:
                if dispatched:
                    self.loop.spins.no_progress(self)
                return
            except OSError as exc:
                self.write_failed(exc)
                return
            del buffers  # the writer may grow its last one again
            counters.writes += 1
            counters.bytes_out += sent
            writer.advance(sent)
            if self.timeouts is not None:
                self.timeouts.sent_at = self.loop.timers.clock()
        for _, on_written, args in writer.reached():
            self.loop.completions.append((self, on_written, args))
        if writer.full and writer.buffered <= self.options.low_water:
            writer.full = False
            self.loop.completions.append((self, Sender.handle_drain, ()))
        if not writer.buffered:
            self._flushed()
        else:
            counters.short_writes += 1

    def handle_drain(self) -> None:
        """Called as a completion: what waits has fallen to the low-water mark."""
        if self.on_drain is not None and not self.closed and not (self.writer is not None and self.writer.full):
            self.on_drain(self)  # type: ignore[arg-type]  # a `Stream`

    def handle_flushed(self) -> None:
        """Called as a completion, after `on_written` and `on_drain`: wait for room no more, unless they wrote on."""
        if self.writer is None:
            self.loop.watchers.set_events(self, self.events & ~WRITE)

    # -- for the other parts

    def refuses(self, ended: bool) -> bool:
        """Whether a write is dropped, in a state that takes none; `ConnectionClosed` when the user has `ended` it."""
        if ended:
            raise ConnectionClosed(
                f'write to {show(self.peername)} after close(), abort() or write_eof(): '
                'nothing was sent; look at conn.closed first'
            )
        return self.writer is SHUT or not self.state.takes_writes

    def overflows(self, weight: int) -> bool:
        """Whether `weight` bytes wait, which is so much that the peer is cut off now."""
        if weight < self.options.max_buffered:
            return False
        self.reset(
            WriteBufferFull(
                f'{show(self.peername)} is too slow: {self.buffered} bytes waited for it; it was reset. '
                'Hold back while write() returns False, until on_drain'
            )
        )
        return True

    # -- in this file

    def _queue(
        self, buffers: Iterable[Buffer | FilePart], on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        pieces = [data if type(data) is FilePart else flat(data) for data in buffers]  # type: ignore[arg-type]  # see flat
        writer = self.writer
        if writer is None:
            return self._send_or_wait(pieces, on_written, args)
        if self.refuses(Connection.has_ended_writing(self)) or self.overflows(writer.weight):
            return False
        if writer.extend(pieces, on_written, args) < self.options.high_water:
            return True
        writer.full = True
        return False

    def _send_or_wait(self, pieces: list[Any], on_written: Callable[..., object] | None, args: tuple[Any, ...]) -> bool:
        waited, writer = self.ending, Writer()
        writer.extend(pieces, on_written, args)
        self.writer = writer
        try:
            self.handle_write(False)  # it may well be writable
            if self.writer is None:
                self.ending = waited  # nothing had to wait
                return True
            if self.state.closed:
                return False  # sending has failed
            self._wait(writer)
            return not writer.full
        except (MemoryError, RecursionError) as exc:
            if type(exc) is RecursionError and not writer.sent:
                self.writer, self.ending = None, waited
                raise
            # As in `lose`, but written out: there may be no stack left for a call.
            starved = self.loop.failures.starved
            starved.append(self)
            starved.append(exc)
            self.writer, self.ending, self.state = self.writer or SHUT, self.ending or UNREPORTED, FAILED
            return False

    def _keep_rest(
        self, data: bytes, sent: int, on_written: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> bool:
        self.loop.counters.short_writes += 1
        self.writer = writer = Writer()
        writer.extend((data,), on_written, args)
        writer.advance(sent)
        self._wait(writer)
        return not writer.full

    def _wait(self, writer: Writer) -> None:
        writer.full = writer.buffered >= self.options.high_water
        if self.timeouts is not None:
            self.timeouts.sent_at = self.loop.timers.clock()
        self.loop.watchers.set_events(self, self.events | WRITE)

    def _flushed(self) -> None:
        if self.state.ends_when_sent:
            self.shut_down()
        else:
            self.writer = None
            self.ending = WAITED
            if self.events & WRITE:
                self.loop.completions.append((self, Sender.handle_flushed, ()))
