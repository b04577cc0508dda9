"""Datagrams: UDP sockets, bound to an address of their own or connected to a peer's, and Unix ones that are handed in.

Owns the socket, the queue of what could not be sent at once, and what the system says about it. Knows nothing of what
datagrams mean. The rules, all of which the tests hold:

    a datagram is sent and delivered whole or not at all; whether a peer gets it, nobody can tell from here
    what fails is one datagram, never the socket: not an ICMP message, not a full queue, not a callback that raises
    the user is called by `handle_read`, as the last thing done for each datagram, or by a completion

The queue holds `max_queued` bytes. Beyond that the newest is dropped, at the call, which returns False: the sender is
there to hear it, and what waits keeps its order.

A UDP socket is full as a whole, and the selector reports when it has room again. A Unix socket that is connected to
nobody is always reported as writable, although one receiver's queue may be full. So there each receiver has a line of
its own in the queue: a full receiver delays nothing but its own datagrams, and is tried again by a timer.
"""

from __future__ import annotations

import errno
import sys
from collections import deque
from socket import AF_INET, MSG_PEEK, MSG_TRUNC, SOCK_DGRAM, SOL_SOCKET
from typing import Any

from ..errors import HandleClosed
from ..hints import Buffer, socket
from ..kernel import AF_UNIX, LOST_ERRORS, SO_MEMINFO, close_socket
from ..loop.log import EPISODE, log
from ..loop.watcher import READ, WRITE, Handle
from .addresses import MOST_ADDRESSES, check_path, destination, interleave, is_ipv4, numeric, show, unmapped
from .multicast import membership
from .options import LOG_INTERVAL, check_callback
from .resolver import look_up
from .sockets import connected_udp
from .states import CLOSED, CONNECTING, OPEN, State
from .writer import flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop, OnDatagram, OnDatagramClose, OnDatagramDrain, OnDatagramError, OnSendError
    from ..kernel import Kernel
    from ..loop.threads import ThreadCall
    from ..loop.timers import Timer
    from .addresses import Address

LOST = State('CLOSED')  # the descriptor is gone, and the user was not told yet

DATAGRAMS_PER_TURN = 32  # of one socket, each way, as in libuv: a flood must not keep the others waiting
READ_SIZE = 65536  # longer than any UDP datagram, so none is ever cut; one of a Unix socket may be longer
# Linux tells the length of a Unix datagram before it is received. Elsewhere these have at most some kilobytes.
PEEK = MSG_PEEK | MSG_TRUNC if sys.platform == 'linux' else 0
RETRY, LONGEST_RETRY = 0.01, 0.25  # seconds until full receivers are tried again, doubled while all of them are full
TRIES_PER_TURN = 256  # receivers that are full
MAX_QUEUED = 1 << 20  # bytes; it is used only while the system's own buffer is full, so more would only be older
DATAGRAM_COST = 256  # bytes: what each weighs besides its data, so that empty ones cannot grow past the limit
LONGEST_IPV4 = 65507  # bytes: the 16 bits of a length, less the headers
LONGEST_IPV6 = 65527
MOST_TRIES = 64  # addresses of a name, in one turn: to connect asks the peer nothing, it fails where there is no route
DROPS = slice(32, 36)  # of the nine numbers of SO_MEMINFO, the last

HINTS = {
    errno.EACCES: '; a broadcast address needs broadcast=True',
    errno.EMSGSIZE: '; it is longer than the way there allows',
}


class DatagramSocket(Handle):
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

    __slots__ = (
        '_broadcast',
        '_buffered',
        '_error',
        '_family',
        '_full_at',
        '_kernel',
        '_last_log',
        '_lines',
        '_local_address',
        '_longest',
        '_lookup',
        '_max_queued',
        '_peer',
        '_per_receiver',
        '_queued',
        '_reading',
        '_refused',
        '_retry',
        '_retry_delay',
        '_source',
        '_told',
        'data',
        'on_close',
        'on_datagram',
        'on_drain',
        'on_error',
        'on_send_error',
        'sock',
        'state',
    )

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
        if type(max_queued) is not int or max_queued < 0:
            raise ValueError(f'max_queued is a number of bytes, at least 0, not {max_queued!r}')
        self.loop = loop
        self.events = 0
        self.since: float = loop.now
        self.sock: socket = None  # type: ignore[assignment]  # until it is attached, and when it is closed
        self.state: State = CONNECTING
        self.data: Any = None
        self.on_datagram: OnDatagram | None = on_datagram
        self.on_send_error: OnSendError | None = on_send_error
        self.on_drain: OnDatagramDrain | None = on_drain
        self.on_close: OnDatagramClose | None = on_close
        self.on_error: OnDatagramError | None = on_error
        for name in 'on_datagram', 'on_send_error', 'on_drain', 'on_close', 'on_error':
            check_callback(name, getattr(self, name))
        self._kernel = kernel
        self._family: int = AF_INET
        self._longest = LONGEST_IPV6
        self._peer: Any = None  # the one that it is connected to
        self._local_address: tuple[str, int] | None = None
        self._broadcast = False
        self._lookup: ThreadCall | None = None
        self._reading = True  # whether to read as soon as it is open
        self._per_receiver = False  # whether each receiver has room of its own
        # What waits: lines of (data, target), one for each receiver that has room of its own, else one under None.
        self._lines: dict[Any, deque[tuple[bytes, Any]]] = {}
        self._queued = 0
        self._buffered = 0
        self._retry: Timer | None = None  # pending while all receivers for which something waits are full
        self._retry_delay = RETRY
        self._full_at = -EPISODE  # the clock when it was full for long
        self._max_queued = max_queued
        self._refused = False  # a send found no room since nothing waited
        self._error: OSError | None = None  # to be told by a completion that waits
        # Who sent the last datagram, as told to the user and as the system says it: an answer needs no check.
        self._told: Any = None
        self._source: Any = None
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
                self._failed(exc, f'a datagram to {show(self._peer)} was not delivered')
                if not count and self.state is OPEN:
                    self._check_error_taken()
                return
            address = unmapped(source)
            if self._peer is not None and self._family != AF_UNIX and address[:2] != self._peer[:2]:
                continue  # it came before the socket was connected, from somebody else
            counters.datagrams_in += 1
            counters.bytes_in += len(data)
            self._told, self._source = address, source
            on_datagram = self.on_datagram
            if on_datagram is not None:
                on_datagram(self, data, address)
            if size > READ_SIZE:
                return  # as many bytes as a turn has for one socket, more or less

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
        """Told as a completion: nothing waits any more."""
        if self.on_drain is not None and self.state is OPEN and not self._refused:
            self.on_drain(self)

    def handle_send_error(self) -> None:
        """Told as a completion: the first error of the turn."""
        exc, self._error = self._error, None
        if self.on_send_error is not None and self.state is OPEN:
            self.on_send_error(self, exc)  # type: ignore[arg-type]  # it was set before this was queued

    def handle_closed(self, exc: BaseException | None) -> None:
        """Told as the last completion of a socket: `on_close`, after which nothing of the user's is kept."""
        if self.sock is not None or self.loop.watchers.is_parked(self):
            self._release()  # `_finish` found no memory or stack for all of it
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
                self._told = self._source = self._error = None
                self._lines.clear()
                self._queued = self._buffered = 0

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()  # the number may be another's by now
        self.state = LOST
        self._finish(exc)

    def handle_refused(self, exc: Exception) -> None:
        self._finish(exc)

    def may_log(self) -> bool:
        now = self.loop.timers.clock()
        if now - self._last_log < LOG_INTERVAL:
            return False
        self._last_log = now
        return True

    # -- sending

    def send(self, data: Buffer, address: Any = None) -> bool:
        """Send one datagram, now if the system takes it, else when it can; never blocks.

        data     bytes, bytearray or memoryview, empty or not; copied only when it has to wait
        address  (host, port), the host in numbers; the address that `on_datagram` told is the cheapest. A connected
                 socket takes None, or its peer's

        Returns False when it was dropped: `max_queued` bytes wait already, hold back until `on_drain`; or the system
        refused it, of which `on_send_error` is about to tell. True says that it is on its way, not that it arrives.
        Raises `HandleClosed` after `close`, TypeError for what is not bytes, ValueError for a name or another bad
        address, and for more than 65,507 bytes over IPv4 or 65,527 over IPv6.
        """
        data = flat(data)
        if self.state is not OPEN and self.state is not CONNECTING:
            if self.state is LOST:
                return False
            raise HandleClosed('send on a UDP socket that is closed: nothing was sent; look at sock.closed first')
        target = self._source if address is not None and address is self._told else self._target(address)
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
        """Close it now; what waits is dropped, and `on_close(sock, None)` tells. Closing twice does nothing."""
        self.loop.guard.check_thread()
        if self.state is OPEN or self.state is CONNECTING:
            self._finish(None)
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
        return self._peer

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
        peer = '' if self._peer is None else f' to {show(self._peer)}'
        return (
            f'<{type(self).__name__} fd={self.fileno()} {self.state} {show(self.address)}{peer}, '
            f'{self._queued} datagrams wait>'
        )

    # -- for its maker

    def attach(self, sock: socket) -> None:
        """Take a bound or connected socket: it is open from here on. Raises as `Watchers.add`, and is not open then."""
        self._take(sock)
        self.loop.watchers.add(self, READ)
        self.state = OPEN

    def connect(
        self, host: str, port: int, family: int, local_address: tuple[str, int] | None, broadcast: bool
    ) -> None:
        """Begin, at once with an address, in a thread with a name. What fails is told by `on_close`."""
        self._local_address = local_address
        self._broadcast = broadcast
        addresses = numeric(self._kernel, host, port, family)
        self.loop.watchers.park(self)
        try:
            if addresses:
                self._connect(addresses)
            else:
                self._lookup = look_up(self.loop, self._kernel, host, port, family, self._looked_up)
                self._lookup.unref()  # the socket itself keeps the loop running
        except (MemoryError, RecursionError) as exc:
            self._finish(exc)

    # -- in this file

    def _looked_up(self, addresses: list[Address] | None, error: Exception | None) -> None:
        self._lookup = None
        try:
            if addresses:
                self._connect(addresses)
            else:
                self._finish(error)
        except (MemoryError, RecursionError) as exc:
            self._finish(exc)

    def _connect(self, addresses: list[Address]) -> None:
        error: Exception | None = None
        for family, address in interleave(addresses[:MOST_ADDRESSES])[:MOST_TRIES]:
            try:
                self.sock = connected_udp(
                    self._kernel, family, address, local_address=self._local_address, broadcast=self._broadcast
                )
                self._take(self.sock)
                self._peer = self._peer or unmapped(address)  # asking for it may have failed
                break
            except OSError as exc:
                error = error or OSError(exc.errno, f'cannot connect to {show(address)}: {exc.strerror or exc}')
        else:
            self._finish(error)
            return
        self.state = OPEN
        events = (READ if self._reading else 0) | (WRITE if self._lines or self._refused else 0)
        try:
            self.loop.watchers.set_events(self, events)
        except Exception as exc:  # the selector has no room
            self._finish(exc.with_traceback(None))

    def _take(self, sock: socket) -> None:
        self._family = sock.family
        self._longest = {AF_INET: LONGEST_IPV4, AF_UNIX: sys.maxsize}.get(sock.family, LONGEST_IPV6)
        try:
            self._peer = unmapped(sock.getpeername())
        except OSError:
            pass  # it is connected to nobody
        self._per_receiver = sock.family == AF_UNIX and self._peer is None
        self.sock = sock

    def _target(self, address: Any) -> Any:
        # None where the socket knows it.
        if self._peer is not None or self.state is CONNECTING:
            if address is None or address == self._peer:
                return None
            raise ValueError(f'this socket sends to {show(self._peer)} alone, not to {address!r}; use bind_udp for all')
        if address is None:
            raise ValueError('send needs an address: this socket is connected to nobody')
        if self._family == AF_UNIX:
            return check_path(address)
        return destination(self._kernel, self._family, address)

    def _check_length(self, length: int, target: Any) -> None:
        longest, address = self._longest, target or self._peer
        if longest == LONGEST_IPV6 and address is not None and is_ipv4(address):
            longest = LONGEST_IPV4  # a socket for both sends it over IPv4
        if length > longest:
            raise ValueError(f'a datagram has at most {longest} bytes here, not {length}')

    def _transmit(self, data: bytes | memoryview, target: Any) -> bool | None:
        """True: the system has it. False: it is dropped, and told. None: it would block."""
        error = self._attempt(data, target)
        if error is None:
            return True
        if self._peer is not None and not isinstance(error, BlockingIOError):
            # The system may be telling of an earlier datagram, and has not even tried this one.
            earlier, error = error, self._attempt(data, target)
            if error is None or isinstance(error, BlockingIOError):
                self._failed(earlier, f'a datagram to {show(self._peer)} was not delivered')
            if error is None:
                return True
        if isinstance(error, BlockingIOError):
            return None
        self._failed(error, f'a datagram of {len(data)} bytes to {show(target or self._peer)} was not sent')
        if self.state is OPEN:  # else the end has counted what waited, and this one with it
            self.loop.counters.datagrams_dropped += 1
        return False

    def _attempt(self, data: bytes | memoryview, target: Any) -> OSError | None:
        try:
            if self._peer is None:
                self.sock.sendto(data, target)
            else:
                self.sock.send(data)
        except OSError as exc:
            return exc.with_traceback(None)
        counters = self.loop.counters
        counters.datagrams_out += 1
        counters.bytes_out += len(data)
        return None

    def _failed(self, exc: OSError, what: str) -> None:
        if exc.errno in LOST_ERRORS:
            self.loop.watchers.evict(self)
            return
        self.loop.counters.datagram_errors += 1
        if self._error is None:  # else one waits to be told in this turn, and many could be made to wait
            self._error = OSError(exc.errno, f'{what}: {exc.strerror}{HINTS.get(exc.errno or 0, "")}')
            self.loop.completions.append((self, DatagramSocket.handle_send_error, ()))

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

    def _next_size(self) -> int:
        # So many bytes are received at once that the next datagram is whole. Only a Unix socket has to ask.
        if not PEEK:
            return READ_SIZE
        return max(READ_SIZE, self.sock.recv_into(bytearray(1), 1, PEEK))

    def _check_error_taken(self) -> None:
        # Most errors are those of a datagram, and are over when they were reported. One that stays would be a spin.
        if self.loop.kernel.readiness(self.fileno(), READ):
            self.loop.spins.no_progress(self)

    def _all_sent(self) -> None:
        self._retry_delay = RETRY
        self.loop.watchers.set_events(self, self.events & ~WRITE)
        if self._refused:
            self._refused = False
            self.loop.completions.append((self, DatagramSocket.handle_drain, ()))

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
        self._retry = loop.timers.later(self._retry_delay, DatagramSocket.handle_retry, self)
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

    def _finish(self, exc: BaseException | None) -> None:
        dropped = self.loop.counters.datagrams_dropped + self._queued
        self.loop.completions.append((self, DatagramSocket.handle_closed, (exc,)))
        self.loop.counters.datagrams_dropped = dropped
        if self.state is not LOST:
            self.state = CLOSED if exc is None else LOST
        try:
            self._release()
        except (MemoryError, RecursionError):
            pass  # `handle_closed` does the rest

    def _release(self) -> None:
        self.loop.watchers.remove(self)
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None
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
