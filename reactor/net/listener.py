"""Listeners: sockets that accept streams. `net/endpoints.py` builds them from the options of `listen_*`.

A listener counts its open connections and holds no reference to them. Its socket is watched only while the listener may
accept. So while it is stopped by the user, by its own limit or by the descriptor limit, clients wait in the kernel's
backlog, and the selector never reports readiness that is not used.

At the descriptor limit `accept` fails and the socket stays readable, so a loop that keeps polling it would spin. The
listener therefore pauses until one of its connections closes, or for ACCEPT_PAUSE seconds. It does the same when any
other error of `accept` repeats, such as EPERM from a firewall or a security module.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, HandleClosed, SelectorFull
from ..hints import socket
from ..kernel.platforms import LOST_ERRORS
from ..kernel.sockets import close_socket
from ..loop.checks import optional_count
from ..loop.log import log
from ..loop.timers import Timer
from ..loop.watcher import READ, Handle
from .addresses import show, unmapped
from .options import LOG_INTERVAL, Callbacks, Options
from .sockets import disable_defer_accept, set_accepted_options
from .states import OPEN
from .stream import Stream

if TYPE_CHECKING:
    from ..callbacks import Loop, OnAcceptError, OnClose, OnConnect, OnData, OnDrain, OnEof, OnError

ACCEPTS_PER_TURN = 64  # for each listener; a backlog of thousands must not keep open connections waiting
HALF_OPEN = 0.05  # seconds for TCP handshakes under way to complete; the drain's CHECK_INTERVAL is added
ACCEPT_PAUSE = 0.1  # seconds until the next attempt when descriptors have run out

EXHAUSTED: set[int] = {
    errno.EMFILE,
    getattr(errno, 'WSAEMFILE', errno.EMFILE),
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
}
FAILED_ACCEPT = (OSError, SelectorFull, *EXHAUSTION)  # why an accepted client cannot become a stream


class Listener(Handle):
    """A listening socket, as returned by `listen_tcp` and `listen_unix`.

    Its callbacks are attributes, which can be replaced at any time.

    Attributes:
        open_connections: How many accepted connections are open.
        on_accept_error: Called as `on_accept_error(listener, exc)` when accepting had to pause, once per episode, in
            the completions phase. None: one line is logged.
        on_connect, on_data, on_eof, on_drain, on_close, on_error: The callbacks of connections accepted from now on.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # set by users
        'on_connect', 'on_data', 'on_eof', 'on_drain', 'on_close', 'on_error', 'on_accept_error', '_max_connections',
        # its socket, and how it makes and counts its connections
        'sock', '_unlink', '_kind', '_options', 'open_connections',
        # how it accepts
        '_batch', '_defer_accept', '_options_inherited', '_inherited', '_handshakes_over',
        # whether it accepts, and the failures of accept
        '_closed', '_paused', '_retry', '_accepts_before', '_last_trouble',
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        options: Options,
        callbacks: Callbacks,
        *,
        kind: type[Stream] = Stream,
        defer_accept: bool = False,
        inherited: bool = False,
        max_connections: int | None = None,
        on_accept_error: OnAcceptError | None = None,
        unlink: Callable[[], None] | None = None,
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self._closed = False
        self.open_connections: int = 0
        self.on_accept_error: OnAcceptError | None = on_accept_error
        self.sock: socket = sock
        self._options = options
        self.on_connect: OnConnect | None = callbacks.on_connect
        self.on_data: OnData | None = callbacks.on_data
        self.on_eof: OnEof | None = callbacks.on_eof
        self.on_drain: OnDrain | None = callbacks.on_drain
        self.on_close: OnClose | None = callbacks.on_close
        self.on_error: OnError | None = callbacks.on_error
        self._kind = kind
        self._max_connections = max_connections
        self._defer_accept = defer_accept
        # The time when the last TCP handshakes will be over; set once new clients are being dropped.
        self._handshakes_over: float | None = None
        self._inherited = inherited  # whether other processes may accept from the socket, now or later
        self._options_inherited = loop.kernel.nodelay_inherited  # whether accepted sockets inherit those of `sock`
        self._batch = 1  # accepts to try in the next turn: one too many costs an exception, one too few costs a poll
        self._paused = False
        self._retry: Timer | None = None  # pending while descriptors have run out
        self._last_trouble = -LOG_INTERVAL
        self._accepts_before = -1  # the loop's count of accepts at the last error
        self._unlink = unlink
        try:
            if max_connections == 0:
                loop.watchers.park(self)
            else:
                loop.watchers.add(self, READ)
        except BaseException:
            if unlink is not None:
                unlink()
            close_socket(sock)
            raise

    def handle_read(self) -> None:
        """Called by the loop: accept about as many clients as are waiting.

        The number of attempts grows by one each turn, and is halved after a turn with fewer clients.
        """
        failed = 0
        for count in range(self._batch):
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                self._batch = count // 2 + 1
                if not count:
                    self.loop.spins.no_progress(self)
                return
            except OSError as exc:
                if exc.errno in LOST_ERRORS:
                    self.loop.watchers.evict(self)
                    return
                if exc.errno == errno.EINVAL:  # other code has shut the socket down, but we still have to close it
                    self._report(exc, 'is over: other code has shut down its socket')
                    self.close()
                    return
                failed += 1
                if exc.errno in EXHAUSTED or (failed == self._batch and self.loop.spins.stalled(self)):
                    self._batch = 1
                    self._back_off(exc)
                    return
                continue  # this client is already gone (ECONNABORTED, for example): try the next one
            self.accept_client(sock, address)
            if not self.events:
                return
        if self._batch < ACCEPTS_PER_TURN:
            self._batch += 1

    def accept_client(self, sock: socket, address: Any) -> Stream | None:
        """Make a stream from an accepted socket; return None if the client is refused or cannot be watched."""
        stream = None
        try:
            stream = self._kind(self.loop, self._options, self, self)
            sock.setblocking(False)
            if not self._options_inherited:
                set_accepted_options(sock, self._options)
            stream.attach(sock, self._defer_accept)
            counters = self.loop.counters
            incoming = counters.incoming + 1
            opened = self.open_connections + 1
            counters.accepts += 1
        except FAILED_ACCEPT as exc:
            if stream is not None:
                stream.forget()
            close_socket(sock)
            self.loop.counters.accepts_refused += 1
            self._back_off(exc)
            return None
        counters.incoming = incoming
        self.open_connections = opened
        try:
            if self._max_connections is not None:
                self._update()
            if stream.on_connect is not None and stream.state is OPEN:  # over TLS, `on_connect` is called later
                self.loop.completions.append((stream, Stream.handle_accepted, ()))
            if self._defer_accept:
                self.loop.completions.append((stream, Stream.handle_first_read, ()))
        except EXHAUSTION as exc:
            stream.reset(exc)
        return stream

    def handle_closed(self, stream: Stream) -> None:
        """Called when an accepted connection has been closed, so there is room for another."""
        counters = self.loop.counters
        # This comes first: if memory runs out here, the method is called again. The later steps cannot fail, so a
        # listener that is paused because it is full always resumes.
        if not self.events:
            self.loop.completions.append((self, Listener.handle_room, ()))
        incoming = counters.incoming - 1
        self.open_connections -= 1
        counters.incoming = incoming

    def handle_room(self) -> None:
        """Called as a completion when a connection has ended while accepting was stopped."""
        if not self._closed:
            self._end_back_off()

    def handle_pause_over(self) -> None:
        """Called by the timer: accept again. If `accept` fails again, the series of failures continues."""
        self.loop.spins.resume_row(self)
        self._end_back_off()

    def handle_lost(self, exc: OSError) -> None:
        self._report(exc, 'is over: other code has closed its socket')
        self._forget()
        self.sock.detach()  # the descriptor number may be in use elsewhere now
        self._closed = True

    def may_log(self) -> bool:
        return self._options.shared.may_log(self.loop.timers.clock())

    def has_log_limit(self) -> bool:
        return True

    def handle_refused(self, exc: Exception) -> None:
        self._back_off(exc)

    def handle_exhausted(self, exc: Exception) -> bool:
        if not self._closed:  # the listener may have been closed since memory ran out
            self._back_off(exc)
        return True

    def handle_drain(self) -> None:
        """Called when a drain begins: accept clients that have connected but not sent data yet.

        They already see an open connection.
        """
        if self._defer_accept and not self._inherited:
            disable_defer_accept(self.sock)

    def handle_last(self) -> None:
        """Called before the drain of the last process that accepts from this socket."""
        self._inherited = False
        self.handle_drain()

    def accept_queue_empty(self) -> bool:
        """Return whether the accept queue is empty and, where the kernel can ensure this, stays empty until the close.

        On Linux, new SYNs are dropped once a check has found the queue empty. A later check then finds the clients
        whose handshake was under way at that time.
        """
        kernel = self.loop.kernel
        if kernel.has_clients(self.sock):
            return False
        if self._inherited:
            return True  # other processes that share the socket will accept later clients
        now = self.loop.timers.clock()
        if self._handshakes_over is None:
            self._handshakes_over = now + HALF_OPEN if kernel.drop_new_connections(self.sock) else now
        return now >= self._handshakes_over and not kernel.has_clients(self.sock)

    def pause(self) -> None:
        """Stop accepting until `resume`; clients wait in the kernel's backlog.

        Raises:
            ReactorError: Called from a thread other than the loop's.
        """
        self.loop.guard.check_thread()
        self._paused = True
        self._update()

    def resume(self) -> None:
        """Accept again.

        Raises:
            HandleClosed: The listener is closed.
            ReactorError: Called from a thread other than the loop's.
        """
        if self._closed:
            raise HandleClosed('this listener is closed; listen again')
        self.loop.guard.check_thread()
        self._paused = False
        self._update()

    @property
    def max_connections(self) -> int | None:
        """How many connections may be open at once; None: no limit. Further clients wait in the kernel's backlog.

        It can be set at any time. Setting it raises TypeError or ValueError for a wrong value, and ReactorError in a
        thread other than the loop's.
        """
        return self._max_connections

    @max_connections.setter
    def max_connections(self, limit: int | None) -> None:
        self.loop.guard.check_thread()
        self._max_connections = optional_count('max_connections', limit)
        self._update()

    @property
    def address(self) -> Any:
        """The address of the listening socket, (host, port) or a path; None after `close`."""
        try:
            return None if self._closed else unmapped(self.sock.getsockname())
        except OSError:
            return None

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stop listening. Clients in the backlog are reset; accepted connections stay open. A second call does nothing.

        The file of a Unix socket is removed. Raises ReactorError in a thread other than the loop's.
        """
        self.loop.guard.check_thread()
        if self._closed:
            return
        failed = self.loop.spins.close_failed  # first, because a method object needs memory
        self._forget()
        close_socket(self.sock, failed)
        self._closed = True

    def _forget(self) -> None:
        # Each step does nothing when it is repeated, so a `close` that ran out of memory or stack can be called again.
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.loop.watchers.remove(self)
        if self._unlink is not None:
            self._unlink()
            self._unlink = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def waits_for(self) -> str:
        if self._paused:
            return 'resume()'
        if self._retry is not None:
            return 'descriptors'
        return 'clients' if self.events else 'one of its connections to close'

    def __repr__(self) -> str:
        state = 'closed' if self._closed else 'accepting' if self.events else 'paused'
        return (
            f'<Listener fd={self.fileno()} {state} at {show(self.address)}, {self.open_connections} connections open>'
        )

    def _back_off(self, exc: Exception) -> None:
        counters = self.loop.counters
        counters.accept_pauses += 1
        if counters.accepts == self._accepts_before:  # nothing was accepted since the last error: the same episode
            self._last_trouble = self.loop.timers.clock()
        self._accepts_before = counters.accepts
        self._retry = self.loop.timers.unreferenced_later(ACCEPT_PAUSE, Listener.handle_pause_over, self)
        self._update()
        self._report(exc, 'paused; clients wait until connections close')

    def _end_back_off(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._update()

    def _update(self) -> None:
        full = self._max_connections is not None and self.open_connections >= self._max_connections
        if not self._closed:
            wanted = not self._paused and self._retry is None and not full
            self.loop.watchers.set_events(self, READ if wanted else 0)

    def _report(self, exc: Exception, outcome: str) -> None:
        # One report per episode: errors within a second of each other belong to the same episode.
        last, self._last_trouble = self._last_trouble, self.loop.timers.clock()
        if self._last_trouble - last < LOG_INTERVAL:
            return
        exc.__traceback__ = None
        if self.on_accept_error is not None:
            self.loop.completions.append((self, self.on_accept_error, (exc,)))
        else:
            log('warning', '%s: %s; accepting %s', self, exc, outcome)
