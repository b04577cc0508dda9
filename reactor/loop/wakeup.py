"""The wakeup: what lets threads and signals reach a loop that sleeps in its selector.

Owns a socketpair and the queue of calls from other threads. Knows nothing of what they do. The rule: a byte in the
socket is only a doorbell. The truth is kept elsewhere (the queue, the flag of each signal), so a full socket loses
nothing, and one byte serves however many calls wait.
"""

from __future__ import annotations

import errno
from collections import deque

from ..errors import HandleClosed
from .log import log
from .watcher import READ, Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from ..kernel import Kernel
    from .loop import Loop

    Call = tuple[Callable[..., object], tuple[Any, ...]]

NO_MEMORY = {errno.ENOBUFS, errno.ENOMEM}
DOORBELL_BYTES = 4096  # read at once; what a flood of signals leaves behind is read in the next turn


class Wakeup(Handle):
    """The doorbell of one loop. It never counts as a reason to keep running."""

    __slots__ = ('_bell', '_rung', '_sock', '_soon', 'calls', 'on_bytes')

    def __init__(self, loop: Loop, kernel: Kernel, soon: deque[Call]) -> None:
        self.loop = loop
        self.since = loop.now
        self.calls: deque[Call] = deque()  # from other threads, in order
        self.on_bytes: Callable[[bytes], None] = _ignore  # told what the doorbell said, for signals
        self._soon = soon
        self._rung = False
        self._sock: socket
        self._bell: socket
        self._sock, self._bell = kernel.socketpair()
        try:
            loop.watchers.add(self, READ)
        except BaseException:
            self._sock.close()
            self._bell.close()
            raise
        loop.watchers.unref(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def bell_fileno(self) -> int:
        """The descriptor to which signals write."""
        return self._bell.fileno()

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Queue a call, from any thread."""
        self.calls.append((fn, args))
        # The flag goes up before the byte and down before the queue is taken: whoever finds it up was queued in time.
        if not self._rung:
            self._rung = True
            self._ring()

    def _ring(self) -> None:
        while True:
            try:
                self._bell.send(b'\0')
            except BlockingIOError:
                pass  # full of signals' bytes, so it rings anyway
            except OSError as exc:
                if exc.errno in NO_MEMORY:
                    continue  # not even for a byte; a bell that is not rung is a call that is never made
                raise HandleClosed('this reactor is closed') from None
            return

    def handle_read(self) -> None:
        """Take the calls that wait, and let the signals tell which of them were raised."""
        try:
            data = self._sock.recv(DOORBELL_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno not in NO_MEMORY:
                self.loop.watchers.evict(self)
            return
        self._rung = False
        self.on_bytes(data)
        calls, soon = self.calls, self._soon
        for _ in range(len(calls)):
            soon.append(calls.popleft())

    def handle_lost(self, exc: OSError) -> None:
        log('error', '%s; no thread and no signal wakes the loop any more', exc)
        self.loop.watchers.remove(self)
        self._sock.detach()  # the number may be another's by now

    def close(self) -> None:
        if not self.closed:
            self.loop.watchers.remove(self)
            try:
                self._sock.close()
            except OSError:
                pass  # somebody else has closed the descriptor
        self._bell.close()

    def __repr__(self) -> str:
        return f'<Wakeup fd={self.fileno()}>'


def _ignore(data: bytes) -> None:
    pass
