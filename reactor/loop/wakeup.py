"""The wakeup: what lets threads and signals reach a loop that sleeps in its selector.

Owns a socketpair and the queue of calls from other threads. Knows nothing of what they do. The rule: a byte in the
socket is only a doorbell. The truth is kept elsewhere (the queue, the flag of each signal), so a full socket loses
nothing, and one byte serves however many calls wait. So it can also be replaced, when somebody else has closed it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from socket import SHUT_WR
from typing import Any

from ..errors import HandleClosed, ReactorError
from ..hints import socket
from ..kernel import close_socket
from .log import EPISODE, log
from .watcher import READ, Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop
    from ..kernel import Kernel

    Call = tuple[Callable[..., object], tuple[Any, ...]]

NO_MEMORY = {errno.ENOBUFS, errno.ENOMEM}
RING_TRIES = 20  # a millisecond each, while the kernel has no memory for a byte
REOPEN = 0.05  # seconds between two attempts to have another doorbell
DOORBELL_BYTES = 4096  # read at once; what a flood of signals leaves behind is read in the next turn


class Wakeup(Handle):
    """The doorbell of one loop. It never counts as a reason to keep running."""

    __slots__ = (
        '_bell',
        '_hung_up',
        '_kernel',
        '_replaced_at',
        '_rung',
        '_soon',
        'calls',
        'on_bytes',
        'on_replaced',
        'sock',
    )

    def __init__(self, loop: Loop, kernel: Kernel, soon: deque[Call]) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.calls: deque[Call] = deque()  # from other threads, in order
        self.on_bytes: Callable[[bytes], None]  # called with what the doorbell said; `Signals` sets both
        self.on_replaced: Callable[[], object]  # called when the descriptor of the bell is another one
        self._kernel = kernel
        self._soon = soon
        self._rung = False
        self._replaced_at = -EPISODE  # the clock when the doorbell was replaced last
        self._open()

    def _open(self) -> None:
        self.sock: socket
        self._bell: socket
        self.sock, self._bell = self._kernel.socketpair()
        self._hung_up = False
        try:
            self.loop.watchers.add(self, READ)
        except BaseException:
            self._close()
            raise
        self.loop.watchers.unref(self)

    def fileno(self) -> int:
        return self.sock.fileno()

    def bell_fileno(self) -> int:
        """The descriptor to which signals write."""
        return self._bell.fileno()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0

    def call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Queue a call, from any thread."""
        entry = fn, args
        self.calls.append(entry)
        if not self._rung:
            try:
                self._ring()
            except (MemoryError, RecursionError):
                if entry not in self.calls:
                    return  # the loop has taken it already
                self.calls.remove(entry)  # the caller is told that it is not made
                raise

    def ring(self) -> bool:
        """Wake the loop, for a signal whose flag is set; returns False when it is woken already. Raises nothing."""
        if self._rung:
            return False
        try:
            self._ring()
        except HandleClosed:
            pass  # it sleeps no more
        return True

    def _ring(self) -> None:
        # The flag goes up before the byte and down before the queue is taken: whoever finds it up was queued in time.
        try:
            self._rung = True
            self._send_byte()
        except BaseException:
            self._rung = False  # Ctrl-C: without the byte the flag would keep all others from ringing, for ever
            raise

    def _send_byte(self) -> None:
        for tries_left in range(RING_TRIES, -1, -1):
            try:
                self._bell.send(b'\0')
            except BlockingIOError:
                pass  # full of signals' bytes, so it rings anyway
            except OSError as exc:
                if exc.errno in NO_MEMORY:  # not even for a byte; a bell that is not rung is a call that is never made
                    if tries_left:
                        self._kernel.sleep(0.001)
                    else:
                        self._hang_up()
                    continue
                if self.loop.guard.closed:
                    raise HandleClosed('this reactor is closed') from None
                # Else somebody has closed it, and the loop looks at the queue when it replaces it.
            return

    def _hang_up(self) -> None:
        # The end of a stream takes no memory. The loop reads it, takes the calls, and replaces the doorbell.
        self._hung_up = True
        try:
            self._bell.shutdown(SHUT_WR)
        except OSError:
            pass  # it was closed by other code, which the loop finds out

    def handle_read(self) -> None:
        """Take the calls that wait, and let the signals tell which of them were raised."""
        try:
            data = self.sock.recv(DOORBELL_BYTES)
        except BlockingIOError:
            self.loop.spins.no_progress(self)
            return
        except OSError as exc:
            if exc.errno in NO_MEMORY:  # it is ready still
                self.loop.spins.no_progress(self)
            else:
                self.loop.watchers.evict(self)
            return
        if data:
            self._take(data)
        else:
            if not self._hung_up:  # other code has closed the bell, and its number may be another's
                self._bell.detach()
            self._replace()

    def handle_exhausted(self, exc: Exception) -> bool:
        # What the bytes stood for is kept elsewhere: it is looked for again, in a completion that is repeated.
        self.loop.completions.append((self, Wakeup._take, (b'',)))
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()
        self._replace()

    def _replace(self) -> None:
        if self._hung_up:
            why = 'could not be rung for want of memory'
        else:
            why = 'was closed by other code; look for code that closes descriptors that it does not own'
        self.loop.watchers.remove(self)
        self._close()
        self._reopen(why)

    def _reopen(self, why: str) -> None:
        text = f'the doorbell of the loop was replaced: it {why}'
        try:
            self._open()
        except (OSError, ReactorError) as exc:
            # No descriptor is left, perhaps. Until there is one, a timer looks for calls and signals.
            self.loop.timers.unreferenced_later(REOPEN, self._reopen, why)
            text = f'the doorbell of the loop cannot be replaced yet ({exc}), and threads wait for it: it {why}'
        self.on_replaced()
        self._take(b'')  # calls that could not ring
        now = self.loop.timers.clock()
        last, self._replaced_at = self._replaced_at, now
        if now - last >= EPISODE:  # last: a Ctrl-C in the logger must not leave the loop without a doorbell
            log('warning', '%s', text)

    def _take(self, data: bytes) -> None:
        calls, soon = self.calls, self._soon
        self._rung = False
        # Without a GIL, a thread could see the flag up after it queued a call that the length does not count yet. So
        # both sides take the deque's lock between what they store and what they read: `append` in `call`, and `rotate`
        # here, which moves nothing. The one that has it second sees what the other stored. Not tested on such a build.
        calls.rotate(0)
        self.on_bytes(data)
        for _ in range(len(calls)):
            soon.append(calls.popleft())

    def close(self) -> None:
        if not self.closed:
            self.loop.watchers.remove(self)
            self._close()

    def _close(self) -> None:
        close_socket(self.sock)
        close_socket(self._bell)

    def __repr__(self) -> str:
        return f'<Wakeup fd={self.fileno()}>'
