"""Datagram sockets: UDP sockets, bound or connected to a peer, and Unix ones that the user hands in.

`DatagramSocket` is what users hold. Here are its callbacks, its read side, its multicast groups, its end, and what it
reports about itself. Its write side has a file of its own (`datagram_sending.py`), and so has the way from a name to a
connected socket (`datagram_connector.py`).

A datagram is received whole or not at all. Neither an ICMP message nor a callback that raises closes the socket: it may
serve many peers. Only `handle_read` calls the user directly, and as the last thing it does for each datagram;
everything else is called as a completion.
"""

from __future__ import annotations

import errno
import sys
from socket import AF_INET, MSG_PEEK, MSG_TRUNC, SOCK_DGRAM, SOL_SOCKET
from typing import Any

from ..errors import HandleClosed
from ..hints import socket
from ..kernel import AF_UNIX, SO_MEMINFO, close_socket
from ..loop.watcher import READ, WRITE
from .addresses import show, unmapped
from .datagram_sending import DATAGRAMS_PER_TURN, LONGEST_IPV4, LONGEST_IPV6, LOST, MAX_QUEUED, DatagramSender
from .multicast import membership
from .options import LOG_INTERVAL, check_callback
from .states import CLOSED, CONNECTING, OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop, OnDatagram, OnDatagramClose, OnDatagramDrain, OnDatagramError, OnSendError
    from ..kernel import Kernel
    from ..loop.threads import ThreadCall
    from .states import State

READ_SIZE = 65536  # longer than any UDP datagram, so none is ever cut; one of a Unix socket may be longer
# Linux reports the length of a Unix datagram before it is received. Elsewhere these have at most some kilobytes.
PEEK = MSG_PEEK | MSG_TRUNC if sys.platform == 'linux' else 0
DROPS = slice(32, 36)  # of the nine numbers of SO_MEMINFO, the last


class DatagramSocket(DatagramSender):
    """A UDP socket. Made by `bind_udp` and `connect_udp`, never by hand.

    Its callbacks are plain attributes and can be replaced at any time:

    on_datagram(sock, data, address)  one arrived, empty or not; without it they are read and dropped
    on_send_error(sock, exc)          the system refused one, or an ICMP message came back for one: the OSError. At most
                                      once a turn, `stats().datagram_errors` counts all; the socket stays open
    on_drain(sock)                    a send returned False for want of room, and now nothing waits any more
    on_close(sock, exc)               the end; exc is None, or why it ended by itself
    on_error(sock, exc)               one of the others raised. Without it: logged, at most once a second. Either way
                                      the socket stays open: no stranger's datagram may end the service of all

    `data` is yours. After `on_close` returned, all of them are dropped.
    """

    __slots__ = ('_last_log', '_reading', 'data', 'lookup', 'on_close', 'on_datagram', 'on_error')

    if TYPE_CHECKING:
        on_drain: OnDatagramDrain | None
        on_send_error: OnSendError | None
        peer: Any
        sock: socket
        state: State

    leads_to: tuple[tuple[str, str], ...] = (
        ('handle_read', 'on_datagram'),
        ('handle_drain', 'on_drain'),
        ('handle_send_error', 'on_send_error'),
        ('handle_closed', 'on_close'),
    )

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        *,
        on_datagram: OnDatagram | None = None,
        on_send_error: OnSendError | None = None,
        on_drain: OnDatagramDrain | None = None,
        on_close: OnDatagramClose | None = None,
        on_error: OnDatagramError | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        super().__init__(loop, kernel, on_send_error, on_drain, max_queued)
        self.data: Any = None
        self.on_datagram: OnDatagram | None = on_datagram
        self.on_close: OnDatagramClose | None = on_close
        self.on_error: OnDatagramError | None = on_error
        for name in 'on_datagram', 'on_send_error', 'on_drain', 'on_close', 'on_error':
            check_callback(name, getattr(self, name))
        self.lookup: ThreadCall | None = None  # pending while the name of the peer is looked up
        self._reading = True  # whether to read as soon as it is open
        self._last_log = -LOG_INTERVAL

    # -- what the loop calls

    def handle_read(self) -> None:
        """Deliver what has arrived, up to a bound. Readiness is level-triggered: what is left is ready again."""
        counters = self.loop.counters
        for count in range(DATAGRAMS_PER_TURN):
            if not self.events & READ:
                return  # the last callback has closed or paused it
            try:
                size = self._next_size() if self._family == AF_UNIX else READ_SIZE
                data, source = self.sock.recvfrom(size)
            except BlockingIOError:
                if not count:
                    self.loop.spins.no_progress(self)
                return
            except OSError as exc:
                self.datagram_failed(exc, f'a datagram to {show(self.peer)} was not delivered')
                if not count and self.state is OPEN:
                    self._check_error_taken()
                return
            address = unmapped(source)
            if self.peer is not None and self._family != AF_UNIX and address[:2] != self.peer[:2]:
                continue  # another peer sent it before the socket was connected
            counters.datagrams_in += 1
            counters.bytes_in += len(data)
            self._sender, self._source = address, source
            on_datagram = self.on_datagram
            if on_datagram is not None:
                on_datagram(self, data, address)
            if size > READ_SIZE:
                return  # as many bytes as a turn has for one socket, more or less

    def handle_closed(self, exc: BaseException | None) -> None:
        """Called as the last completion of a socket: `on_close`, after which nothing of the user's is kept."""
        if self.sock is not None or self.loop.watchers.is_parked(self):
            self._release()  # `finish` found no memory or stack for all of it
        on_close, called = self.on_close, True
        self.on_error = None  # what on_close raises is logged
        try:
            if on_close is not None:
                on_close(self, exc)
        except (MemoryError, RecursionError) as failure:
            # Raised by the call itself and not inside the callback: the loop calls this method again.
            called = failure.__traceback__.tb_next is not None  # type: ignore[union-attr]
            raise
        finally:
            if called:
                self.state = CLOSED
                self.on_datagram = self.on_send_error = self.on_drain = self.on_close = self.data = None
                self._sender = self._source = self._error = None
                self._lines.clear()
                self._queued = self._buffered = 0

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()  # the number may be another's by now
        self.state = LOST
        self.finish(exc)

    def handle_refused(self, exc: Exception) -> None:
        self.finish(exc)

    def may_log(self) -> bool:
        now = self.loop.timers.clock()
        if now - self._last_log < LOG_INTERVAL:
            return False
        self._last_log = now
        return True

    # -- receiving

    def pause_reading(self) -> None:
        """Call `on_datagram` no more until `resume_reading`; the system keeps some and drops the rest."""
        self._reading = False
        if self.state is OPEN:
            self.loop.watchers.set_events(self, self.events & ~READ)

    def resume_reading(self) -> None:
        """Call `on_datagram` again. Does nothing when reading goes on or the socket is closed."""
        self._reading = True
        if self.state is OPEN:
            self.loop.watchers.set_events(self, self.events | READ)

    def join_group(self, group: str, interface: str | int | None = None) -> None:
        """Receive what is sent to a multicast group, and to the port that this socket is bound to.

        interface  where to listen: its name or index, for IPv4 also an address of it; None: the system chooses

        Raises the system's OSError, ValueError for what is no group, HandleClosed when the socket is not open.
        """
        level, join, _, value = self._membership(group, interface)
        self._set_membership(level, join, value, f'cannot join {group}')

    def leave_group(self, group: str, interface: str | int | None = None) -> None:
        """Leave a group that was joined with the same arguments. Raises as `join_group`."""
        level, _, leave, value = self._membership(group, interface)
        self._set_membership(level, leave, value, f'cannot leave {group}')

    @property
    def kernel_drops(self) -> int | None:
        """How many datagrams the system dropped since they came faster than they were read; None if it cannot tell."""
        if self.sock is None or SO_MEMINFO < 0:
            return None
        try:
            return int.from_bytes(self.sock.getsockopt(SOL_SOCKET, SO_MEMINFO, DROPS.stop)[DROPS], sys.byteorder)
        except OSError:
            return None

    # -- ending

    def close(self) -> None:
        """Close it now; what waits is dropped, and `on_close(sock, None)` is called. Closing twice does nothing."""
        self.loop.guard.check_thread()
        if self.state is OPEN or self.state is CONNECTING:
            self.finish(None)
        self.state = CLOSED

    @property
    def closed(self) -> bool:
        """True from `close` or failure on."""
        return self.state is CLOSED or self.state is LOST

    # -- facts

    @property
    def address(self) -> Any:
        """Where it receives: (host, port); None when it is not open."""
        try:
            return unmapped(self.sock.getsockname()) if self.sock is not None else None
        except OSError:
            return None

    @property
    def sockname(self) -> Any:
        """The same, by the name that connections have for it."""
        return self.address

    @property
    def peername(self) -> Any:
        """The peer of a connected socket, else None."""
        return self.peer

    def fileno(self) -> int:
        return -1 if self.sock is None else self.sock.fileno()

    def waits_for(self) -> str:
        if self.state is CONNECTING:
            return 'the name to be looked up'
        reasons = ['datagrams'] if self.events & READ else []
        if self._queued:
            reasons.append(f'room to send {self._queued}')
        return ' and '.join(reasons) or 'its owner: reading is paused'

    def __repr__(self) -> str:
        peer = '' if self.peer is None else f' to {show(self.peer)}'
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {show(self.address)}{peer}, '
            f'{self._queued} datagrams wait>'
        )

    # -- for its maker

    def attach(self, sock: socket) -> None:
        """Take a bound or connected socket: it is open from here on. Raises as `Watchers.add`, and is not open then."""
        self.take(sock)
        self.loop.watchers.add(self, READ)
        self.state = OPEN

    def take(self, sock: socket) -> None:
        """Take the descriptor, and what is to be known of it: its family, its peer, how much it can send at once."""
        self._family = sock.family
        self._longest = {AF_INET: LONGEST_IPV4, AF_UNIX: sys.maxsize}.get(sock.family, LONGEST_IPV6)
        try:
            self.peer = unmapped(sock.getpeername())
        except OSError:
            pass  # it has no peer
        self._per_receiver = sock.family == AF_UNIX and self.peer is None
        self.sock = sock

    def opened(self) -> None:
        """The parked socket is connected: watch it, and send what was queued before."""
        self.state = OPEN
        events = (READ if self._reading else 0) | (WRITE if self._lines or self._refused else 0)
        try:
            self.loop.watchers.set_events(self, events)
        except Exception as exc:  # the selector has no room
            self.finish(exc.with_traceback(None))

    def finish(self, exc: BaseException | None) -> None:
        """Close the socket now, and have `on_close(sock, exc)` called as a completion, which is appended first."""
        dropped = self.loop.counters.datagrams_dropped + self._queued
        self.loop.completions.append((self, DatagramSocket.handle_closed, (exc,)))
        self.loop.counters.datagrams_dropped = dropped
        if self.state is not LOST:
            self.state = CLOSED if exc is None else LOST
        try:
            self._release()
        except (MemoryError, RecursionError):
            pass  # `handle_closed` does the rest

    # -- in this file

    def _next_size(self) -> int:
        # So many bytes are received at once that the next datagram is whole. Only a Unix socket has to ask.
        if not PEEK:
            return READ_SIZE
        return max(READ_SIZE, self.sock.recv_into(bytearray(1), 1, PEEK))

    def _check_error_taken(self) -> None:
        # Most errors are those of a datagram, and are over when they were reported. One that stays would be a spin.
        if self.loop.kernel.readiness(self.fileno(), READ):
            self.loop.spins.no_progress(self)

    def _membership(self, group: str, interface: str | int | None) -> tuple[int, int, int, bytes]:
        self.loop.guard.check_thread()
        if self.state is not OPEN:
            raise HandleClosed('only an open UDP socket has multicast groups; this one is closed, or not connected yet')
        return membership(self._kernel, group, interface)

    def _set_membership(self, level: int, option: int, value: bytes, what: str) -> None:
        try:
            self.sock.setsockopt(level, option, value)
        except OSError as exc:
            hint = '; name an interface that can' if exc.errno in (errno.ENODEV, errno.EADDRNOTAVAIL) else ''
            raise OSError(exc.errno, f'{what}: {exc.strerror}{hint}') from None

    def _release(self) -> None:
        self.loop.watchers.remove(self)
        if self.lookup is not None:
            self.lookup.close()
            self.lookup = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.sock is not None:
            close_socket(self.sock)
            self.sock = None  # type: ignore[assignment]


def check_datagram_socket(sock: Any) -> None:
    """TypeError unless `sock` is a socket for datagrams."""
    if getattr(sock, 'type', None) != SOCK_DGRAM or not hasattr(sock, 'recvfrom'):
        raise TypeError(f'bind_udp takes a datagram socket, not {sock!r}')
