"""The write side of a datagram socket: `send`, and the queue of datagrams that are waiting to be sent.

A datagram is sent whole and at once if the kernel accepts it. Otherwise it waits, in order, until there is room. The
queue holds `max_queued` bytes. When it is full, the newest datagram is dropped and `send` returns False, so the caller
can react, and the order of the queue is kept.

The buffer of a UDP socket is shared by all receivers, and the selector reports when it has room again. But a Unix
socket without a peer is always reported as writable, even while the queue of a receiver is full. On such a socket each
receiver has its own line in the queue: a full receiver delays only its own datagrams, and a timer makes the next
attempt.

A failed send costs one datagram, never the socket. Errors are reported by a completion, at most one per turn.
"""

from __future__ import annotations

import errno
from collections import deque
from socket import AF_INET
from typing import TYPE_CHECKING, Any

from ..errors import HandleClosed
from ..hints import Buffer, socket
from ..kernel import Kernel
from ..kernel.platforms import AF_UNIX, LOST_ERRORS
from ..loop.log import EPISODE, log
from ..loop.timers import Timer
from ..loop.watcher import WRITE, Handle
from .addresses import check_path, destination, is_ipv4, show
from .states import CONNECTING, OPEN, State
from .writer import flat

if TYPE_CHECKING:
    from ..callbacks import Loop, OnDatagramDrain, OnSendError

LOST = State('CLOSED')  # the socket has failed, and `on_close` has not been called yet

# The limit applies to each socket and direction, as in libuv: a flood of datagrams must not delay other handles.
DATAGRAMS_PER_TURN = 32
RETRY, LONGEST_RETRY = 0.01, 0.25  # seconds until full receivers are tried again; doubled while all of them are full
TRIES_PER_TURN = 256  # at most this many full receivers are tried per turn
MAX_QUEUED = 1 << 20  # bytes; the queue is used only while the kernel's buffer is full, and a longer one adds delay
DATAGRAM_COST = 256  # bytes added to the size of each queued datagram, so that empty datagrams are limited too
LONGEST_IPV4 = 65507  # bytes: the most that a length of 16 bits allows, minus the headers
LONGEST_IPV6 = 65527

HINTS = {
    errno.EACCES: '; a broadcast address needs broadcast=True',
    errno.EMSGSIZE: '; it is longer than the network allows',
}


class DatagramSender(Handle):
    """The part of a `DatagramSocket` that sends."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # set by users
        'on_send_error', 'on_drain',
        # its socket, its state, and the peer that it is connected to
        'sock', 'state', 'peer', '_kernel', '_family', '_longest',
        # the queue, and its limit
        '_lines', '_queued', '_buffered', '_max_queued', '_refused', '_per_receiver',
        # when full receivers are tried again
        '_retry', '_retry_delay', '_full_at',
        # the error for `on_send_error`; the sender of the last datagram
        '_error', '_sender', '_source',
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        on_send_error: OnSendError | None,
        on_drain: OnDatagramDrain | None,
        max_queued: int,
    ) -> None:
        if type(max_queued) is not int or max_queued < 0:
            raise ValueError(f'max_queued must be a number of bytes, at least 0, not {max_queued!r}')
        self.loop = loop
        self.events = 0
        self.since: float = loop.now
        self.on_send_error: OnSendError | None = on_send_error
        self.on_drain: OnDatagramDrain | None = on_drain
        self.sock: socket = None  # type: ignore[assignment]  # until it is attached and after it is closed
        self.state: State = CONNECTING
        self.peer: Any = None
        self._kernel = kernel
        self._family: int = AF_INET
        self._longest = LONGEST_IPV6
        # The queue: lines of (data, target). There is one line for each receiver that has its own queue in the kernel,
        # otherwise a single line under None.
        self._lines: dict[Any, deque[tuple[bytes, Any]]] = {}
        self._queued = 0
        self._buffered = 0
        self._max_queued = max_queued
        self._refused = False  # a send has found the queue full, so `on_drain` must follow
        self._per_receiver = False  # whether each receiver has its own queue in the kernel
        self._retry: Timer | None = None  # pending while the receivers of all lines are full
        self._retry_delay = RETRY
        self._full_at = -EPISODE  # the time of the last `_report_full`
        self._error: OSError | None = None  # if set, a completion that passes it to `on_send_error` is queued
        # The sender of the last datagram, in the user's form and in the kernel's. A reply to it needs no address check.
        self._sender: Any = None
        self._source: Any = None

    # -- methods for users

    def send(self, data: Buffer, address: Any = None) -> bool:
        """Send one datagram without blocking. It is queued if the kernel has no room for it now.

        Args:
            data: `bytes`, `bytearray` or `memoryview`, which may be empty. It is copied only if it has to wait.
            address: (host, port) with a numeric host; for a Unix socket, a path. Sending to the object that
                `on_datagram` got is fastest. For a connected socket: None, or the address of its peer.

        Returns:
            True if the datagram was sent or queued; it may still be lost on the way. False if it was dropped,
            either because `max_queued` bytes are already waiting (stop sending until `on_drain`), or because the kernel
            has refused it (`on_send_error` is called in the completions phase).

        Raises:
            HandleClosed: The socket is closed.
            TypeError: `data` is not bytes, or `address` has the wrong type.
            ValueError: The address is a name or is not valid, or the datagram has more than 65,507 bytes over IPv4
                or 65,527 over IPv6.
        """
        data = flat(data)
        if self.state is not OPEN and self.state is not CONNECTING:
            if self.state is LOST:
                return False
            raise HandleClosed('send() on a closed datagram socket: nothing was sent; check sock.closed before sending')
        target = self._source if address is not None and address is self._sender else self._target(address)
        if len(data) > LONGEST_IPV4:
            self._check_length(len(data), target)
        if self.state is OPEN and (not self._lines or (self._per_receiver and target not in self._lines)):
            sent = self._transmit(data, target)
            if sent is not None:
                return sent
        return self._keep(data, target)

    @property
    def queued(self) -> int:
        """How many datagrams are waiting to be sent. In `on_close`: how many were never sent."""
        return self._queued

    @property
    def buffered(self) -> int:
        """The total size of the waiting datagrams, in bytes."""
        return self._buffered

    # -- methods for the loop

    def handle_write(self) -> None:
        """Called by the loop: send a limited number of queued datagrams. Each line keeps its order."""
        lines, tries, full = self._lines, TRIES_PER_TURN, 0
        sent = 0
        while full < len(lines) and sent < DATAGRAMS_PER_TURN and tries:
            receiver = next(iter(lines))
            line = lines[receiver]
            data, target = line[0]
            done = self._transmit(data, target)
            if self.state is not OPEN:
                return
            if done is None:
                tries -= 1
                full += 1
                lines[receiver] = lines.pop(receiver)  # moved to the end, so that other receivers come first
                continue
            sent += 1
            line.popleft()
            if not line:
                del lines[receiver]
            self._queued -= 1
            self._buffered -= len(data)
        if not lines:
            self._all_sent()
        elif full < len(lines) and tries:
            self.loop.watchers.set_events(self, self.events | WRITE)  # the rest is sent in the next turn
        else:
            self._await_room(sent)

    def handle_retry(self) -> None:
        """Called by the timer: try to send again, because full receivers may have room now."""
        self._retry = None
        self.handle_write()

    def handle_drain(self) -> None:
        """Called as a completion when the queue is empty again."""
        if self.on_drain is not None and self.state is OPEN and not self._refused:
            self.on_drain(self)  # type: ignore[arg-type]  # a `DatagramSocket`

    def handle_send_error(self) -> None:
        """Called as a completion: pass the first error of the turn to `on_send_error`."""
        exc, self._error = self._error, None
        if self.on_send_error is not None and self.state is OPEN:
            self.on_send_error(self, exc)  # type: ignore[arg-type]  # set before this was queued

    # -- methods for other modules

    def datagram_failed(self, exc: OSError, what: str) -> None:
        """Called when the kernel has refused a datagram, or reports that an earlier one failed."""
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.loop.counters.datagram_errors += 1
        if self._error is None:  # otherwise an error is already queued for this turn; a peer could cause many errors
            self._error = OSError(exc.errno, f'{what}: {exc.strerror}{HINTS.get(exc.errno or 0, "")}')
            self.loop.completions.append((self, DatagramSender.handle_send_error, ()))

    # -- private methods

    def _target(self, address: Any) -> Any:
        # Returns None for a connected socket, which knows its peer.
        if self.peer is not None or self.state is CONNECTING:
            if address is None or address == self.peer:
                return None
            raise ValueError(
                f'this socket is connected to {show(self.peer)} and can send only to it, not to {address!r}; '
                'use bind_udp() for several peers'
            )
        if address is None:
            raise ValueError('send() needs an address, because this socket is not connected to a peer')
        if self._family == AF_UNIX:
            return check_path(address)
        return destination(self._kernel, self._family, address)

    def _check_length(self, length: int, target: Any) -> None:
        longest, address = self._longest, target or self.peer
        if longest == LONGEST_IPV6 and address is not None and is_ipv4(address):
            longest = LONGEST_IPV4  # a dual-stack socket sends this datagram over IPv4
        if length > longest:
            raise ValueError(f'a datagram can have at most {longest} bytes here, not {length}')

    def _transmit(self, data: bytes | memoryview, target: Any) -> bool | None:
        """Return True if the kernel accepted the data, False if it refused the data, None if there is no room."""
        error = self._attempt(data, target)
        if error is None:
            return True
        if self.peer is not None and not isinstance(error, BlockingIOError):
            # This may be the error of an earlier datagram. In that case the kernel has not tried to send this one.
            earlier, error = error, self._attempt(data, target)
            if error is None or isinstance(error, BlockingIOError):
                self.datagram_failed(earlier, f'a datagram to {show(self.peer)} was not delivered')
            if error is None:
                return True
        if isinstance(error, BlockingIOError):
            return None
        self.datagram_failed(error, f'a datagram of {len(data)} bytes to {show(target or self.peer)} was not sent')
        if self.state is OPEN:  # otherwise the datagram was counted with the queue when the socket was closed
            self.loop.counters.datagrams_dropped += 1
        return False

    def _attempt(self, data: bytes | memoryview, target: Any) -> OSError | None:
        try:
            if self.peer is None:
                self.sock.sendto(data, target)
            else:
                self.sock.send(data)
        except OSError as exc:
            return exc.with_traceback(None)
        counters = self.loop.counters
        counters.datagrams_out += 1
        counters.bytes_out += len(data)
        return None

    def _keep(self, data: bytes | memoryview, target: Any) -> bool:
        full = self._buffered + self._queued * DATAGRAM_COST >= self._max_queued
        if full:
            self._refused = True
            self.loop.counters.datagrams_dropped += 1
        else:
            receiver = target if self._per_receiver else None
            line = self._lines.get(receiver)
            if line is None:
                line = self._lines[receiver] = deque()
            line.append((bytes(data), target))
            self._queued += 1
            self._buffered += len(data)
        if self.state is OPEN and self._retry is None:
            self.loop.watchers.set_events(self, self.events | WRITE)
        return not full

    def _all_sent(self) -> None:
        self._retry_delay = RETRY
        self.loop.watchers.set_events(self, self.events & ~WRITE)
        if self._refused:
            self._refused = False
            self.loop.completions.append((self, DatagramSender.handle_drain, ()))

    def _await_room(self, sent: int) -> None:
        # The last attempt found no room. Normally the selector reports when there is room. It cannot do so for a full
        # receiver, or for a socket that it always reports as writable, so a timer makes the next attempt.
        watchers, loop = self.loop.watchers, self.loop
        if sent:
            self._retry_delay = RETRY
        misled = self._per_receiver or self._retry_delay > RETRY or (not sent and loop.spins.stalled(self))
        if not misled or not loop.kernel.readiness(self.fileno(), WRITE):
            watchers.set_events(self, self.events | WRITE)
            return
        watchers.set_events(self, self.events & ~WRITE)
        if self.state is not OPEN:
            return
        loop.counters.stalls += 1
        self._retry = loop.timers.later(self._retry_delay, DatagramSender.handle_retry, self)
        self._retry.unref()  # the handle itself keeps the loop running
        self._retry_delay = min(2 * self._retry_delay, LONGEST_RETRY)
        if self._retry_delay == LONGEST_RETRY:
            self._report_full()

    def _report_full(self) -> None:
        last, self._full_at = self._full_at, self.loop.timers.clock()
        if self._full_at - last >= EPISODE:
            what = f'{len(self._lines)} receivers are' if self._per_receiver else "the kernel's buffer is"
            log(
                'warning',
                '%s: %s full while %d datagrams are waiting; the next attempts are made every %g s',
                self,
                what,
                self._queued,
                LONGEST_RETRY,
            )
