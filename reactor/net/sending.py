"""The write side of a stream: `write`, `writelines`, `send_file` and `write_eof`.

As much of a write as the kernel accepts is sent at once. The rest waits in a `Writer` (`writer.py`), and so does each
later write, until the selector reports room. `conn.writer is None` is the only check on the fast path. So `conn.writer`
must be a `Writer`, or `SHUT`, whenever a write cannot simply be sent: while bytes are waiting to be sent, and while the
stream is connecting, ending or closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

from ..errors import EXHAUSTION, ConnectionClosed, WriteBufferFull
from ..hints import Buffer, HasFileno, Ts
from ..kernel.platforms import HAS_SENDMSG
from ..kernel.sockets import send_first
from ..loop.watcher import WRITE
from .addresses import show
from .ending import UNREPORTED, WAITED, Connection, Ending
from .files import FilePart, file_part
from .states import CONNECTING, ENDING, FAILED, HALF_ENDING, State
from .writer import SHUT, Writer, check_buffers, flat


class Sender(Connection):
    """The part of a `Stream` that sends."""

    __slots__ = ()

    # -- methods for users

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        """Send bytes without blocking. Bytes that the kernel does not accept now are buffered and sent later.

        Args:
            data: The bytes. If not all of them can be sent at once, `bytes` are kept by reference, and the rest of a
                `bytearray` or `memoryview` is copied.
            on_written: Called as `on_written(conn, *args)` when the kernel has accepted all bytes of this write. It
                runs in the completions phase, in the order of the writes, and never if the connection fails first.
            *args: Arguments for `on_written`.

        Returns:
            True if you can go on writing. False if `high_water` or more bytes are waiting now: stop writing until
            `on_drain`. False also if the connection has failed: the bytes are dropped, and `on_close` will be called.

        Raises:
            ConnectionClosed: You have called `close`, `abort` or `write_eof`, or `on_close` has been called.
            TypeError: `data` is not bytes, or `on_written` is not callable.

        A write that raises anything, including MemoryError and RecursionError, has sent nothing. If memory or stack
        runs out when some bytes may have been sent, this returns False, and `on_close` is called with the error.
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
        except MemoryError as exc:  # the bytes may have been sent, if there was no memory for the result only
            return self.lose(exc)
        try:
            counters = self.loop.counters
            counters.writes += 1
            counters.bytes_out += sent
            if self.timeouts is not None:
                self.timeouts.sent_at = self.loop.timers.clock()
            if sent != len(data):
                return self._keep_rest(data, sent, on_written, args)
            if on_written is not None:
                self.loop.completions.append((self, on_written, args))
        except EXHAUSTION as exc:
            if not sent:
                self.writer = None
                raise
            # The same as `lose`, but written out: there may be no stack left for a call.
            starved = self.loop.failures.starved
            starved.append(self)
            starved.append(exc)
            self.writer, self.ending, self.state = self.writer or SHUT, self.ending or UNREPORTED, FAILED
            return False
        return True

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        """Send several buffers with one system call; everything else works as in `write`.

        Args:
            buffers: An iterable of `bytes`, `bytearray` or `memoryview`.
            on_written: Called once, when the kernel has accepted the bytes of all buffers.
            *args: Arguments for `on_written`.

        Returns:
            The same as `write`.

        Raises:
            ConnectionClosed: The same as in `write`.
            TypeError: `buffers` is a single buffer or not iterable, or contains something that is not bytes. In these
                cases nothing is sent.
        """
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
        """Send bytes of a file, with `sendfile` where the operating system has it.

        The file is sent in order with other writes, and `on_written` and the return value work as in `write`. The
        unsent bytes are included in `buffered` and compared with the water marks, but not with `max_buffered`. The file
        is read while the peer accepts it, and each read blocks the loop for as long as the disk takes. `linger` applies
        to files too: after a long file, close in `on_written`.

        Args:
            file: A regular file, open for reading. A duplicate of its descriptor is kept, so the file may be closed
                after this call. Its position is ignored and, except on Windows, not moved.
            offset: The position of the first byte to send.
            count: How many bytes to send; None: up to the present end of the file. If the file becomes shorter before
                they are sent, the connection is reset and `on_close` gets a `SendFileError`.
            on_written: Called as `on_written(conn, *args)` when the kernel has accepted all of these bytes.
            *args: Arguments for `on_written`.

        Returns:
            The same as `write`.

        Raises:
            ConnectionClosed: The same as in `write`.
            TypeError: `file` has no `fileno` method, or `offset` or `count` is not an int.
            ValueError: `file` is not a regular file, or does not contain these bytes.
            OSError: The descriptor of `file` cannot be used.
        """
        if on_written is not None and not callable(on_written):
            raise TypeError(f'on_written must be callable, not {on_written!r}')
        return self._queue((file_part(self.loop.kernel, file, offset, count),), on_written, args)

    def write_eof(self) -> None:
        """Shut down the write side after the buffered bytes are sent. The peer then reads end of file.

        This side can still receive, so `write_eof` is the safe way to end while the peer may still be sending: call it,
        then wait for `on_eof`. When both sides have ended, the connection closes by itself. Does nothing if the write
        side has ended already.
        """
        state = self.state
        if not state.takes_writes or self.has_ended_writing():
            return
        if state is CONNECTING:
            self.ending = Ending(by_user=True)
            return
        self.ending = None  # WAITED matters only to `close`, which from here on waits for the peer in any case
        if self.writer is None:
            self.shut_down()
        elif self.writer is not SHUT:
            self.state: State = HALF_ENDING if state.half else ENDING

    # -- methods for the loop

    def handle_write(self, dispatched: bool = True) -> None:
        """Called by the loop when there is room: send as many of the buffered bytes as the kernel accepts at once.

        `dispatched` is False if a write calls this. In that case, having no room does not count as a stall.
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
            del buffers  # so that the writer can grow its last buffer again
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
        """Called as a completion when the buffer has fallen to the low-water mark."""
        writer = self.writer
        if writer is not None and writer.buffered and writer.buffered >= self.options.high_water:
            writer.full = True  # a callback has lowered the marks: `on_drain` follows when the new ones are reached
        if self.on_drain is not None and not self.closed and not (self.writer is not None and self.writer.full):
            self.on_drain(self)  # type: ignore[arg-type]  # a `Stream`

    def handle_flushed(self) -> None:
        """Called as a completion after `on_written` and `on_drain`: unless they wrote more, stop waiting for room."""
        if self.writer is None:
            self.loop.watchers.set_events(self, self.events & ~WRITE)

    # -- methods for other modules

    def refuses(self, ended: bool) -> bool:
        """Return whether a write must be dropped. Raise `ConnectionClosed` if the user has `ended` the stream."""
        if ended:
            raise ConnectionClosed(
                f'write to {show(self.peername)} after close(), abort() or write_eof(): '
                'nothing was sent; check conn.closed before writing'
            )
        return self.writer is SHUT or not self.state.takes_writes

    def overflows(self, weight: int) -> bool:
        """Reset the connection if `weight`, in bytes, has reached `max_buffered`; return whether it has."""
        if weight < self.options.max_buffered:
            return False
        self.reset(
            WriteBufferFull(
                f'{show(self.peername)} reads too slowly: {self.buffered} bytes were buffered for it; the limit is '
                f'max_buffered={self.options.max_buffered}; the connection was reset. '
                'When write() returns False, stop writing until on_drain'
            )
        )
        return True

    # -- private methods

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
            self.handle_write(False)  # most sockets have room now
            if self.writer is None:
                self.ending = waited  # nothing had to wait
                return True
            if self.state.closed:
                return False  # sending has failed
            self._wait(writer)
            return not writer.full
        except EXHAUSTION as exc:
            if type(exc) is RecursionError and not writer.sent:
                self.writer, self.ending = None, waited
                raise
            # The same as `lose`, but written out: there may be no stack left for a call.
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
