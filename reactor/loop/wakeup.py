"""The wakeup: how threads and signals reach a loop that sleeps in its selector.

The wakeup consists of a queue of calls from other threads, and a socketpair. Threads and signals write to one end, the
bell, and the loop watches the other end. A byte only wakes the loop, as a doorbell would: the calls are in the queue,
and each signal has a flag. So one byte is enough for all waiting calls, a full socket loses nothing, and the sockets
can be replaced when other code has closed them.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from socket import SHUT_WR
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, HandleClosed, ReactorError
from ..hints import socket
from ..kernel import Kernel
from ..kernel.sockets import close_socket
from .log import EPISODE, log
from .watcher import READ, Handle

if TYPE_CHECKING:
    from ..callbacks import Loop

Call = tuple[Callable[..., object], tuple[Any, ...]]

NO_MEMORY = {errno.ENOBUFS, errno.ENOMEM}
RING_TRIES = 20  # how often to retry, a millisecond apart, while the kernel has no memory for a byte
REOPEN = 0.05  # seconds between two attempts to open new sockets
DOORBELL_BYTES = 4096  # the most bytes read in one turn; after many signals, the rest is read in the next turn


class Wakeup(Handle):
    """The doorbell of one loop: the handle that wakes it. An open doorbell does not keep `run` going."""

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # its sockets, and their state
        'sock', '_bell', '_kernel', '_rung', '_hung_up', '_replaced_at',
        # calls from other threads, and the queue of the loop
        'calls', '_soon',
        # set by `Signals`
        'on_bytes', 'on_replaced',
    )  # fmt: skip

    def __init__(self, loop: Loop, kernel: Kernel, soon: deque[Call]) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.calls: deque[Call] = deque()  # calls from other threads, in order
        self.on_bytes: Callable[[bytes], None]  # called with the bytes that were read; set by `Signals`
        self.on_replaced: Callable[[], object]  # called when the bell has a new descriptor; set by `Signals`
        self._kernel = kernel
        self._soon = soon
        self._rung = False
        self._replaced_at = -EPISODE  # when the sockets were last replaced, by the loop's clock
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
        """Return the descriptor to which signals write."""
        return self._bell.fileno()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0

    def call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Queue a call. May be called in any thread."""
        entry = fn, args
        self.calls.append(entry)
        if not self._rung:
            try:
                self._ring()
            except EXHAUSTION:
                if entry not in self.calls:
                    return  # the loop has taken the call already
                self.calls.remove(entry)  # the caller gets the exception, so this call must not be made
                raise

    def ring(self) -> bool:
        """Wake the loop, for a signal whose flag is set. Return False if it was already woken. Never raises."""
        if self._rung:
            return False
        try:
            self._ring()
        except HandleClosed:
            pass  # the loop is closed
        return True

    def _ring(self) -> None:
        # The flag is set before the byte is sent, and cleared before the queue is read. So a call that is queued while
        # the flag is set is found too.
        try:
            self._rung = True
            self._send_byte()
        except BaseException:
            self._rung = False  # after Ctrl-C: if the flag stayed set without a byte, nothing would wake the loop again
            raise

    def _send_byte(self) -> None:
        for tries_left in range(RING_TRIES, -1, -1):
            try:
                self._bell.send(b'\0')
            except BlockingIOError:
                pass  # the socket is full of signals' bytes, which wake the loop anyway
            except OSError as exc:
                if exc.errno in NO_MEMORY:  # without this byte the call might never be made
                    if tries_left:
                        self._kernel.sleep(0.001)
                    else:
                        self._hang_up()
                    continue
                if self.loop.guard.closed:
                    raise HandleClosed('this reactor is closed; make a new one') from None
                # Otherwise other code has closed the socket. The loop will replace it, and then read the queue.
            return

    def _hang_up(self) -> None:
        # Shutting down the bell needs no memory. The loop then reads end of file, makes the calls and replaces the
        # sockets.
        self._hung_up = True
        try:
            self._bell.shutdown(SHUT_WR)
        except OSError:
            pass  # other code has closed the socket, which the loop will notice

    def handle_read(self) -> None:
        """Move the waiting calls, and the callbacks of signals, to the soon queue."""
        try:
            data = self.sock.recv(DOORBELL_BYTES)
        except BlockingIOError:
            self.loop.spins.no_progress(self)
            return
        except OSError as exc:
            if exc.errno in NO_MEMORY:  # the socket is still ready, so the loop tries again
                self.loop.spins.no_progress(self)
            else:
                self.loop.watchers.evict(self)
            return
        if data:
            self._take(data)
        else:
            if not self._hung_up:  # other code has closed the bell; its number may belong to another file
                self._bell.detach()
            self._replace()

    def handle_exhausted(self, exc: Exception) -> bool:
        # The calls and flags are not lost: a completion, which can be repeated, reads them.
        self.loop.completions.append((self, Wakeup._take, (b'',)))
        return True

    def handle_lost(self, exc: OSError) -> None:
        self.sock.detach()
        self._replace()

    def _replace(self) -> None:
        if self._hung_up:
            why = 'could not be written to because the kernel had no memory'
        else:
            why = 'was closed by other code; look for code that closes descriptors that it does not own'
        self.loop.watchers.remove(self)
        self._close()
        self._reopen(why)

    def _reopen(self, why: str) -> None:
        text = f'the wakeup socket was replaced: it {why}'
        try:
            self._open()
        except (OSError, ReactorError) as exc:
            # There may be no descriptor left. Until the sockets can be opened, a timer reads the calls and flags.
            self.loop.timers.unreferenced_later(REOPEN, self._reopen, why)
            text = f'the wakeup socket cannot be replaced yet ({exc}), so calls from threads are delayed: it {why}'
        self.on_replaced()
        self._take(b'')  # queue the calls that could not wake the loop
        now = self.loop.timers.clock()
        last, self._replaced_at = self._replaced_at, now
        if now - last >= EPISODE:  # log this last: a Ctrl-C in the logger must not leave the loop without a wakeup
            log('warning', '%s', text)

    def _take(self, data: bytes) -> None:
        calls, soon = self.calls, self._soon
        self._rung = False
        # Without a GIL, a thread could see the flag set although the length below does not include the call that it has
        # queued. So both sides take the lock of the deque between their store and their load: `append` in `call`, and
        # `rotate` here, which moves nothing. The side that takes the lock second sees what the other side has stored.
        # This is not tested on a build without a GIL.
        calls.rotate(0)
        self.on_bytes(data)
        for _ in range(len(calls)):
            soon.append(calls.popleft())

    def close(self) -> None:
        if not self.closed:
            self.loop.watchers.remove(self)
            self._close()

    def _close(self) -> None:
        close_socket(self.sock, self.loop.spins.close_failed)
        close_socket(self._bell)

    def __repr__(self) -> str:
        return f'<Wakeup fd={self.fileno()}>'
