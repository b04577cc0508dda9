"""Which classes a reactor makes its connections of, and those that check their caller's thread (`debug=True`).

The check is in classes of its own, so it costs nothing when it is off.
"""

from __future__ import annotations

from .admission.proxied import ProxiedStream
from .net.datagram import DatagramSocket
from .net.stream import Stream
from .net.tls import TLSStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .net.sending import Buffer


class Kinds:
    """The classes that one reactor makes its streams and datagram sockets of."""

    __slots__ = ('datagram', 'plain', 'proxied', 'tls')

    def __init__(
        self,
        plain: type[Stream],
        tls: type[TLSStream],
        proxied: type[ProxiedStream],
        datagram: type[DatagramSocket],
    ) -> None:
        self.plain = plain
        self.tls = tls
        self.proxied = proxied
        self.datagram = datagram


KINDS = Kinds(Stream, TLSStream, ProxiedStream, DatagramSocket)


class CheckedStream(Stream):
    """A `Stream` whose methods raise `ReactorError` in a thread that does not run its loop."""

    __slots__ = ()

    def write(self, data: Buffer, on_written: Callable[..., object] | None = None, *args: Any) -> bool:
        self.loop.guard.check_thread()
        return super().write(data, on_written, *args)

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[..., object] | None = None, *args: Any
    ) -> bool:
        self.loop.guard.check_thread()
        return super().writelines(buffers, on_written, *args)

    def send_file(
        self, file: Any, offset: int = 0, count: int | None = None, on_written: Any = None, *args: Any
    ) -> bool:
        self.loop.guard.check_thread()
        return super().send_file(file, offset, count, on_written, *args)

    def write_eof(self) -> None:
        self.loop.guard.check_thread()
        super().write_eof()

    def set_reading(self, reading: bool) -> None:
        self.loop.guard.check_thread()
        super().set_reading(reading)

    @property
    def busy(self) -> bool:
        return super().busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        self.loop.guard.check_thread()
        Stream.busy.fset(self, busy)  # type: ignore[attr-defined]

    def set_timeouts(self, *, read: float | None = None, write: float | None = None, idle: float | None = None) -> None:
        self.loop.guard.check_thread()
        super().set_timeouts(read=read, write=write, idle=idle)

    def close(self) -> None:
        self.loop.guard.check_thread()
        super().close()

    def abort(self, exc: BaseException | None = None) -> None:
        self.loop.guard.check_thread()
        super().abort(exc)


class CheckedTLSStream(CheckedStream, TLSStream):
    """The same over TLS."""

    __slots__ = ()


class CheckedProxiedStream(CheckedStream, ProxiedStream):
    """The same while its PROXY header is awaited."""

    __slots__ = ()


class CheckedDatagramSocket(DatagramSocket):
    """A `DatagramSocket` whose methods raise `ReactorError` in a thread that does not run its loop."""

    __slots__ = ()

    def send(self, data: Buffer, address: Any = None) -> bool:
        self.loop.guard.check_thread()
        return super().send(data, address)

    def pause_reading(self) -> None:
        self.loop.guard.check_thread()
        super().pause_reading()

    def resume_reading(self) -> None:
        self.loop.guard.check_thread()
        super().resume_reading()


CHECKED_KINDS = Kinds(CheckedStream, CheckedTLSStream, CheckedProxiedStream, CheckedDatagramSocket)
