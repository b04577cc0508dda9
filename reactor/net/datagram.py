"""Datagram sockets: UDP sockets, bound or connected to a peer, and Unix sockets that the user passes in.

`DatagramSocket` is the class that users hold. Its callbacks, reading, multicast groups, closing and properties are in
this file. Sending is in `datagram_sending.py`, and connecting to a name in `datagram_connector.py`.

A datagram is received whole or not at all. Because a socket may serve many peers, neither an ICMP message nor an
exception in a callback closes it. Only `handle_read` calls the user's callback directly, as the last step for each
datagram. All other callbacks run as completions.
"""

from __future__ import annotations

import errno
import sys
from socket import AF_INET, MSG_PEEK, MSG_TRUNC, SOCK_DGRAM, SOL_SOCKET
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, HandleClosed
from ..hints import socket
from ..kernel import Kernel
from ..kernel.platforms import AF_UNIX, SO_MEMINFO
from ..kernel.sockets import close_socket
from ..loop.checks import shown
from ..loop.threads import ThreadCall
from ..loop.watcher import READ, WRITE
from .addresses import show, unmapped
from .datagram_sending import DATAGRAMS_PER_TURN, LONGEST_IPV4, LONGEST_IPV6, LOST, MAX_QUEUED, DatagramSender
from .multicast import membership
from .options import LOG_INTERVAL, check_callback
from .states import CLOSED, CONNECTING, OPEN, State

if TYPE_CHECKING:
    from ..callbacks import Loop, OnDatagram, OnDatagramClose, OnDatagramDrain, OnDatagramError, OnSendError

READ_SIZE = 65536  # bytes: longer than any UDP datagram, so none is cut; a Unix datagram may be longer
# Linux reports the length of a Unix datagram before it is received. On other systems, Unix datagrams have a few
# kilobytes at most.
PEEK = MSG_PEEK | MSG_TRUNC if sys.platform == 'linux' else 0
DROPS = slice(32, 36)  # where SO_MEMINFO has the count of dropped datagrams, the last of its nine numbers


# The arguments of the callbacks of a datagram socket.
ARGUMENTS = {
    **dict.fromkeys(('on_send_error', 'on_close', 'on_error'), '(socket, exc)'),
    'on_datagram': '(socket, data, address)',
    'on_drain': '(socket)',
}


class DatagramSocket(DatagramSender):
    """A datagram socket, as returned by `bind_udp` and `connect_udp`.

    Its callbacks are attributes, which can be replaced at any time. They and `data` are dropped after `on_close`.

    Attributes:
        on_datagram: Called as `on_datagram(sock, data, address)` for each datagram, even if it is empty. None:
            datagrams are read and dropped.
        on_send_error: Called as `on_send_error(sock, exc)` with the OSError when the kernel has refused a datagram, or
            an ICMP message reports that a datagram was not delivered. It is called at most once a turn;
            `stats().datagram_errors` counts all errors. The socket stays open.
        on_drain: Called as `on_drain(sock)` when the queue is empty again, if `send` has returned False because the
            queue was full.
        on_close: Called once, as `on_close(sock, exc)`, when the socket has ended. `exc` is None after `close`,
            otherwise the error that ended it.
        on_error: Called as `on_error(sock, exc)` when another callback raised. None: the exception is logged, at most
            once a second. In both cases the socket stays open, because one peer's datagram must not end the service for
            the others.
        data: Any object of yours.
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
        for name, arguments in ARGUMENTS.items():
            check_callback(name, getattr(self, name), arguments)
        self.lookup: ThreadCall | None = None  # pending while the name of the peer is being looked up
        self._reading = True  # whether the socket reads as soon as it is open
        self._last_log = -LOG_INTERVAL

    # -- methods for the loop

    def handle_read(self) -> None:
        """Called by the loop: deliver a limited number of datagrams. The selector reports the rest again."""
        counters = self.loop.counters
        for count in range(DATAGRAMS_PER_TURN):
            if not self.events & READ:
                return  # the last callback has closed or paused the socket
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
                continue  # this datagram is from another peer, and arrived before the socket was connected
            counters.datagrams_in += 1
            counters.bytes_in += len(data)
            self._sender, self._source = address, source
            on_datagram = self.on_datagram
            if on_datagram is not None:
                on_datagram(self, data, address)
            if size > READ_SIZE:
                return  # a long datagram uses up the socket's share of the turn

    def handle_closed(self, exc: BaseException | None) -> None:
        """Called as the last completion of a socket: call `on_close`, then drop the user's callbacks and data."""
        if self.sock is not None or self.loop.watchers.is_parked(self):
            self._release()  # memory or stack ran out before `finish` had done everything
        on_close, called = self.on_close, True
        self.on_error = None  # an exception in on_close is logged
        try:
            if on_close is not None:
                on_close(self, exc)
        except EXHAUSTION as failure:
            # If the call itself raised the error, and not the callback's code, the loop repeats this method.
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
        self.sock.detach()  # the descriptor number may be in use elsewhere now
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

    def has_log_limit(self) -> bool:
        return True

    # -- receiving

    def pause_reading(self) -> None:
        """Stop calling `on_datagram` until `resume_reading`. The kernel buffers some datagrams and drops the rest."""
        self._reading = False
        if self.state is OPEN:
            self.loop.watchers.set_events(self, self.events & ~READ)

    def resume_reading(self) -> None:
        """Call `on_datagram` again. Does nothing if reading is not paused or the socket is closed."""
        self._reading = True
        if self.state is OPEN:
            self.loop.watchers.set_events(self, self.events | READ)

    def join_group(self, group: str, interface: str | int | None = None) -> None:
        """Receive the datagrams sent to a multicast group, on the port that this socket is bound to.

        Args:
            group: The address of the group, such as `'239.1.2.3'` or `'ff02::1:3'`.
            interface: The network interface: its name, its index, or for IPv4 also its address. None: the kernel
                chooses one.

        Raises:
            HandleClosed: The socket is not open.
            TypeError, ValueError: `group` is not a multicast address, or `interface` is not valid.
            OSError: The interface does not exist, or the kernel cannot join the group.
            ReactorError: Called from a thread other than the loop's.
        """
        level, join, _, value = self._membership(group, interface)
        self._set_membership(level, join, value, f'cannot join {group}')

    def leave_group(self, group: str, interface: str | int | None = None) -> None:
        """Leave a group that was joined with the same arguments. Raises the same errors as `join_group`."""
        level, _, leave, value = self._membership(group, interface)
        self._set_membership(level, leave, value, f'cannot leave {group}')

    @property
    def kernel_drops(self) -> int | None:
        """How many datagrams the kernel dropped because its buffer was full; None if the platform cannot report it."""
        if self.sock is None or SO_MEMINFO < 0:
            return None
        try:
            return int.from_bytes(self.sock.getsockopt(SOL_SOCKET, SO_MEMINFO, DROPS.stop)[DROPS], sys.byteorder)
        except OSError:
            return None

    # -- ending

    def close(self) -> None:
        """Close the socket now and drop the queued datagrams. A second call does nothing.

        `on_close(sock, None)` is called later, in the completions phase. Raises ReactorError in a thread other than the
        loop's.
        """
        self.loop.guard.check_thread()
        if self.state is OPEN or self.state is CONNECTING:
            self.finish(None)
        self.state = CLOSED

    @property
    def closed(self) -> bool:
        """True once you have called `close`, or the socket has failed."""
        return self.state is CLOSED or self.state is LOST

    # -- properties

    @property
    def address(self) -> Any:
        """The address at which the socket receives, (host, port); None if it is not open."""
        try:
            return unmapped(self.sock.getsockname()) if self.sock is not None else None
        except OSError:
            return None

    @property
    def sockname(self) -> Any:
        """The same value as `address`, under the name that connections use."""
        return self.address

    @property
    def peername(self) -> Any:
        """The address of the peer of a connected socket; otherwise None."""
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

    # -- methods for opening (internal)

    def attach(self, sock: socket) -> None:
        """Open the handle on a bound or connected socket (internal). Raises the same errors as `Watchers.add`."""
        self.take(sock)
        self.loop.watchers.add(self, READ)
        self.state = OPEN

    def take(self, sock: socket) -> None:
        """Take over the socket and record its family, its peer, and the length of its longest datagram (internal)."""
        self._family = sock.family
        self._longest = {AF_INET: LONGEST_IPV4, AF_UNIX: sys.maxsize}.get(sock.family, LONGEST_IPV6)
        try:
            self.peer = unmapped(sock.getpeername())
        except OSError:
            pass  # the socket has no peer
        self._per_receiver = sock.family == AF_UNIX and self.peer is None
        self.sock = sock

    def opened(self) -> None:
        """Open a parked handle whose socket is connected (internal): watch it, and send the queued datagrams."""
        self.state = OPEN
        events = (READ if self._reading else 0) | (WRITE if self._lines or self._refused else 0)
        try:
            self.loop.watchers.set_events(self, events)
        except Exception as exc:  # the selector has no room
            self.finish(exc.with_traceback(None))

    def finish(self, exc: BaseException | None) -> None:
        """Append the completion that calls `on_close(sock, exc)`, then close the socket (internal)."""
        dropped = self.loop.counters.datagrams_dropped + self._queued
        self.loop.completions.append((self, DatagramSocket.handle_closed, (exc,)))
        self.loop.counters.datagrams_dropped = dropped
        if self.state is not LOST:
            self.state = CLOSED if exc is None else LOST
        try:
            self._release()
        except EXHAUSTION:
            pass  # `handle_closed` tries again

    # -- private methods

    def _next_size(self) -> int:
        # How many bytes to ask for, so that the next datagram is received whole. Called only for Unix sockets.
        if not PEEK:
            return READ_SIZE
        return max(READ_SIZE, self.sock.recv_into(bytearray(1), 1, PEEK))

    def _check_error_taken(self) -> None:
        # Most errors belong to one datagram and are cleared once they are reported. A persistent error would make the
        # loop spin.
        if self.loop.kernel.readiness(self.fileno(), READ):
            self.loop.spins.no_progress(self)

    def _membership(self, group: str, interface: str | int | None) -> tuple[int, int, int, bytes]:
        self.loop.guard.check_thread()
        if self.state is not OPEN:
            raise HandleClosed('only an open socket can join or leave a group; this one is closed or not connected yet')
        return membership(self._kernel, group, interface)

    def _set_membership(self, level: int, option: int, value: bytes, what: str) -> None:
        try:
            self.sock.setsockopt(level, option, value)
        except OSError as exc:
            hint = '; pass an interface that can' if exc.errno in (errno.ENODEV, errno.EADDRNOTAVAIL) else ''
            raise OSError(exc.errno, f'{what}: {exc.strerror}{hint}') from None

    def _release(self) -> None:
        failed = self.loop.spins.close_failed  # first, because a method object needs memory
        self.loop.watchers.remove(self)
        if self.lookup is not None:
            self.lookup.close()
            self.lookup = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.sock is not None:
            close_socket(self.sock, failed)
            self.sock = None  # type: ignore[assignment]


def check_datagram_socket(sock: Any) -> None:
    """Raise TypeError unless `sock` is a datagram socket."""
    if getattr(sock, 'type', None) != SOCK_DGRAM or not hasattr(sock, 'recvfrom'):
        raise TypeError(f'bind_udp(sock=) takes a datagram socket, not {shown(sock)}')
