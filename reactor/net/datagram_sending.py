"""The write side of a datagram socket: `send`, and the queue of datagrams that wait to be sent.

A datagram is sent at once, as a whole, if the kernel takes it. Otherwise it waits, in order, until there is room. The
queue holds `max_queued` bytes. When it is full the newest datagram is dropped, and `send` returns False: the caller can
react, and the order of what waits is kept.

When the buffer of a UDP socket is full, it is full for every receiver, and the selector reports when it has room again.
A Unix socket without a peer is always reported as writable, although the queue of one receiver may be full. There each
receiver has a line of its own in the queue: a full receiver delays only its own datagrams, and a timer tries it again.

A failure costs one datagram, never the socket. Errors are reported by a completion, at most one in a turn.
"""

from __future__ import annotations

import errno
from collections import deque
from socket import AF_INET
from typing import Any

from ..errors import HandleClosed
from ..hints import Buffer, socket
from ..kernel import AF_UNIX, LOST_ERRORS
from ..loop.log import EPISODE, log
from ..loop.watcher import WRITE, Handle
from .addresses import check_path, destination, is_ipv4, show
from .states import CONNECTING, OPEN, State
from .writer import flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop, OnDatagramDrain, OnSendError
    from ..kernel import Kernel
    from ..loop.timers import Timer

LOST = State('CLOSED')  # the descriptor is gone, and `on_close` was not called yet

DATAGRAMS_PER_TURN = 32  # of one socket, each way, as in libuv: a flood must not keep the others waiting
RETRY, LONGEST_RETRY = 0.01, 0.25  # seconds until full receivers are tried again, doubled while all of them are full
TRIES_PER_TURN = 256  # receivers that are full
MAX_QUEUED = 1 << 20  # bytes; it is used only while the kernel's own buffer is full, so more would only be older
DATAGRAM_COST = 256  # bytes: what each weighs besides its data, so that empty ones cannot grow past the limit
LONGEST_IPV4 = 65507  # bytes: the 16 bits of a length, less the headers
LONGEST_IPV6 = 65527

HINTS = {
    errno.EACCES: '; a broadcast address needs broadcast=True',
    errno.EMSGSIZE: '; it is longer than the way there allows',
}


class DatagramSender(Handle):
    """The part of a `DatagramSocket` that sends."""

    __slots__ = (  # noqa: RUF023  (by what they are for)
        # what users set
        'on_send_error', 'on_drain',
        # where it is: the descriptor, the state, the peer that it is connected to
        'sock', 'state', 'peer', '_kernel', '_family', '_longest',
        # what waits, and how much of it may
        '_lines', '_queued', '_buffered', '_max_queued', '_refused', '_per_receiver',
        # trying full receivers again
        '_retry', '_retry_delay', '_full_at',
        # what `on_send_error` is to get; who sent the last datagram
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
            raise ValueError(f'max_queued is a number of bytes, at least 0, not {max_queued!r}')
        self.loop = loop
        self.events = 0
        self.since: float = loop.now
        self.on_send_error: OnSendError | None = on_send_error
        self.on_drain: OnDatagramDrain | None = on_drain
        self.sock: socket = None  # type: ignore[assignment]  # until it is attached, and when it is closed
        self.state: State = CONNECTING
        self.peer: Any = None
        self._kernel = kernel
        self._family: int = AF_INET
        self._longest = LONGEST_IPV6
        # What waits: lines of (data, target), one for each receiver that has room of its own, else one under None.
        self._lines: dict[Any, deque[tuple[bytes, Any]]] = {}
        self._queued = 0
        self._buffered = 0
        self._max_queued = max_queued
        self._refused = False  # a send found no room since nothing waited
        self._per_receiver = False  # whether each receiver has room of its own
        self._retry: Timer | None = None  # pending while all receivers for which something waits are full
        self._retry_delay = RETRY
        self._full_at = -EPISODE  # the clock when it was full for long
        self._error: OSError | None = None  # a completion that waits passes it to `on_send_error`
        # The sender of the last datagram, in the form that users see and in the kernel's: an answer needs no check.
        self._sender: Any = None
        self._source: Any = None

    # -- what users call

    def send(self, data: Buffer, address: Any = None) -> bool:
        """Send one datagram, now if the kernel takes it, else when it can; never blocks.

        data     bytes, bytearray or memoryview, empty or not; copied only when it has to wait
        address  (host, port), the host in numbers; the one passed to `on_datagram` is the cheapest. A connected
                 socket takes None, or its peer's

        Returns False when it was dropped: `max_queued` bytes wait already, hold back until `on_drain`; or the kernel
        refused it, which `on_send_error` is about to report. True says that it is on its way, not that it arrives.
        Raises `HandleClosed` after `close`, TypeError for what is not bytes, ValueError for a name or another bad
        address, and for more than 65,507 bytes over IPv4 or 65,527 over IPv6.
        """
        data = flat(data)
        if self.state is not OPEN and self.state is not CONNECTING:
            if self.state is LOST:
                return False
            raise HandleClosed('send on a UDP socket that is closed: nothing was sent; look at sock.closed first')
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
        """How many datagrams wait to be sent. In `on_close`: how many never were."""
        return self._queued

    @property
    def buffered(self) -> int:
        """How many bytes they have."""
        return self._buffered

    # -- what the loop calls

    def handle_write(self) -> None:
        """Send what waits, up to a bound, in the order of each line."""
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
                lines[receiver] = lines.pop(receiver)  # the others come first
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
            self.loop.watchers.set_events(self, self.events | WRITE)  # the rest comes in the next turn
        else:
            self._await_room(sent)

    def handle_retry(self) -> None:
        """Called by the timer: the receivers that were full may have room."""
        self._retry = None
        self.handle_write()

    def handle_drain(self) -> None:
        """Called as a completion: nothing waits any more."""
        if self.on_drain is not None and self.state is OPEN and not self._refused:
            self.on_drain(self)  # type: ignore[arg-type]  # a `DatagramSocket`

    def handle_send_error(self) -> None:
        """Called as a completion, with the first error of the turn."""
        exc, self._error = self._error, None
        if self.on_send_error is not None and self.state is OPEN:
            self.on_send_error(self, exc)  # type: ignore[arg-type]  # it was set before this was queued

    # -- for the other parts

    def datagram_failed(self, exc: OSError, what: str) -> None:
        """The kernel has refused a datagram, or reports the failure of an earlier one."""
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.loop.counters.datagram_errors += 1
        if self._error is None:  # else one waits to be reported in this turn, and a peer could cause many
            self._error = OSError(exc.errno, f'{what}: {exc.strerror}{HINTS.get(exc.errno or 0, "")}')
            self.loop.completions.append((self, DatagramSender.handle_send_error, ()))

    # -- in this file

    def _target(self, address: Any) -> Any:
        # None where the socket knows it.
        if self.peer is not None or self.state is CONNECTING:
            if address is None or address == self.peer:
                return None
            raise ValueError(f'this socket sends to {show(self.peer)} alone, not to {address!r}; use bind_udp for all')
        if address is None:
            raise ValueError('send needs an address: this socket has no peer')
        if self._family == AF_UNIX:
            return check_path(address)
        return destination(self._kernel, self._family, address)

    def _check_length(self, length: int, target: Any) -> None:
        longest, address = self._longest, target or self.peer
        if longest == LONGEST_IPV6 and address is not None and is_ipv4(address):
            longest = LONGEST_IPV4  # a socket for both sends it over IPv4
        if length > longest:
            raise ValueError(f'a datagram has at most {longest} bytes here, not {length}')

    def _transmit(self, data: bytes | memoryview, target: Any) -> bool | None:
        """True: the kernel has it. False: it is dropped, and an error is reported. None: it would block."""
        error = self._attempt(data, target)
        if error is None:
            return True
        if self.peer is not None and not isinstance(error, BlockingIOError):
            # This may be the error of an earlier datagram. Then the kernel has not even tried to send this one.
            earlier, error = error, self._attempt(data, target)
            if error is None or isinstance(error, BlockingIOError):
                self.datagram_failed(earlier, f'a datagram to {show(self.peer)} was not delivered')
            if error is None:
                return True
        if isinstance(error, BlockingIOError):
            return None
        self.datagram_failed(error, f'a datagram of {len(data)} bytes to {show(target or self.peer)} was not sent')
        if self.state is OPEN:  # else it was counted with what waited when the socket was closed
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
        # The last try found no room. The selector reports when there is, except for a full receiver, and for a socket
        # that it reports as writable all the time: these are tried again by a timer.
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
            what = f'{len(self._lines)} receivers are' if self._per_receiver else 'it is'
            log(
                'warning',
                '%s: %s full for %d datagrams; they wait, and are tried again every %g s',
                self,
                what,
                self._queued,
                LONGEST_RETRY,
            )
