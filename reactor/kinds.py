"""The classes that a reactor uses for its connections, listeners and datagram sockets.

With `debug=True` these are classes that check the caller's thread, so the check costs nothing otherwise. Listeners with
limits, or for proxies, are made here too, because their class is in a layer above `net`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

from .admission.limits import Limits, check_limits
from .admission.listener import GuardedListener
from .admission.proxied import PROXY_TIMEOUT, ProxiedStream, ProxyProtocol, check_proxy_protocol
from .hints import Buffer, HasFileno, Ts
from .kernel import Kernel
from .net.datagram import DatagramSocket
from .net.endpoints import Kinds
from .net.listener import Listener
from .net.stream import Stream
from .net.tls import TLSStream

if TYPE_CHECKING:
    from .callbacks import ListenOptions


class GuardedListenerMaker:
    """Makes a listener that has limits, or that accepts clients through proxies; see `Kinds.guard`."""

    __slots__ = ('_kinds', '_limits', '_proxy')

    def __init__(self, kinds: Kinds, proxy: ProxyProtocol | None, limits: Limits | None) -> None:
        self._kinds = kinds
        self._proxy = proxy
        self._limits = limits

    def __call__(self, *args: Any, kind: type[Stream], **keywords: Any) -> Listener:
        kind = kind if self._proxy is None else self._kinds.proxied
        return GuardedListener(*args, kind=kind, proxy=self._proxy, limits=self._limits, **keywords)


def guard(
    kernel: Kernel, kinds: Kinds, has_path: bool, unix: bool, proxy_protocol: Any, options: ListenOptions
) -> Callable[..., Listener]:
    """Check `limits` and `proxy_protocol`, and return the callable that makes the listener.

    Raises TypeError, ValueError or OSError if one of these options is wrong.
    """
    limits = options.get('limits')
    proxy_timeout = options.get('proxy_timeout', PROXY_TIMEOUT)
    proxy = check_proxy_protocol(kernel, proxy_protocol, proxy_timeout, kinds.plain, has_path)
    check_limits(kernel, limits, unix)
    return Listener if proxy is None and limits is None else GuardedListenerMaker(kinds, proxy, limits)


KINDS = Kinds(Stream, TLSStream, ProxiedStream, DatagramSocket, guard)


class CheckedStream(Stream):
    """A `Stream` whose methods raise `ReactorError` in a thread that does not run its loop."""

    __slots__ = ()

    def write(self, data: Buffer, on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts) -> bool:
        self.loop.guard.check_thread()
        return super().write(data, on_written, *args)

    def writelines(
        self, buffers: Iterable[Buffer], on_written: Callable[[Self, *Ts], object] | None = None, *args: *Ts
    ) -> bool:
        self.loop.guard.check_thread()
        return super().writelines(buffers, on_written, *args)

    def send_file(
        self,
        file: HasFileno,
        offset: int = 0,
        count: int | None = None,
        on_written: Callable[[Self, *Ts], object] | None = None,
        *args: *Ts,
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
    """A `CheckedStream` over TLS."""

    __slots__ = ()


class CheckedProxiedStream(CheckedStream, ProxiedStream):
    """A `CheckedStream` that waits for its PROXY header."""

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


CHECKED_KINDS = Kinds(CheckedStream, CheckedTLSStream, CheckedProxiedStream, CheckedDatagramSocket, guard)
