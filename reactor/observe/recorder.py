"""A flight recorder: the last seconds of a reactor in memory, and in a file when something was slow.

The model is the flight recorder of Go 1.25. It answers the question that counters and logs cannot answer: what happened
right before and after a stall.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from time import strftime, time
from typing import Any

from .. import Reactor, ReactorError
from ..hints import StrPath
from ..loop.checks import seconds as duration
from ..loop.checks import time_limit, whole
from ..loop.log import describe, log
from ..loop.loop import Loop
from ..loop.slow import Watch, where
from ..loop.timers import Timer
from ..loop.watcher import Handle
from ..net.addresses import show
from ..net.ending import Connection
from .trace_events import Recording, write_trace

RESOLUTION = 0.001  # seconds: turns that begin within this time are one entry, so the memory has a limit
AFTERMATH = 1.0  # seconds from a trigger to its snapshot, which so shows what followed
MOST_CALLBACKS = 10_000  # callbacks in memory
LONGEST_NAME = 200  # characters for a connection


def connection(item: object) -> str | None:
    """Return the name of a connection, which is the same before and after its end, or of another handle."""
    if isinstance(item, Connection):
        return f'{type(item).__name__} {show(item.peername)}'
    return describe(item)[:LONGEST_NAME] if isinstance(item, Handle) else None


def left_run(exc: Exception) -> str:
    """Return the reason of the file that an exception causes."""
    return f'an exception left run(): {type(exc).__name__}: {describe(exc)}'


def trace_name(pid: int) -> str:
    """Return a file name for a trace of this process, without its extension. Sorted by name, the oldest is first."""
    return f'trace-{strftime("%Y%m%dT%H%M%S")}-{pid}'


class FlightRecorder(Watch):
    """Records the turns of a reactor and its slow callbacks, and writes them to files for Perfetto and speedscope.

    Each turn is recorded with the time of each phase, its events, and how late its timers were. Turns that begin within
    a millisecond of each other share an entry, unless they are long or follow a long one. An entry takes about 700
    bytes, so ten seconds take at most 7 MB. Only one recorder can be open on a reactor.

    A file is written when a callback or a turn takes `slow` seconds, when the signal arrives, or when an exception
    leaves `run`; also by `python -m reactor.observe SOCKET trace FILE`, and by `save`. The live page offers it as a
    download. The file is written in a thread, a second after what has caused it, so it shows what followed too. There
    is at most one such file in `seconds`. If a file cannot be written, this is logged.

    Args:
        r: The reactor.
        seconds: How far back a file reaches.
        folder: Where to write the files that slow callbacks, the signal and exceptions cause. None: write none.
        callbacks: Seconds. Callbacks that take at least this long are recorded, with module, name, line and connection,
            and from a millisecond on with the events and timers that waited for them. Timing them adds 8 % to the
            instructions of a keep-alive request. 0: every callback, of which the last 10,000 are kept; this triples
            the instructions. None: no callbacks, which adds 0.4 %.
        slow: Seconds. A callback or turn that takes at least this long causes a file. None: never.
        most_files: How many files of all processes may be in the folder; the oldest ones are removed.
        signum: A signal that causes a file. None: no signal.

    Raises:
        TypeError, ValueError: An argument is wrong.
        ReactorError: The reactor has an open recorder already, or this thread is not the one that runs it.
        HandleClosed: The reactor is closed.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        r: Reactor,
        seconds: float = 10.0,
        *,
        folder: StrPath | None = None,
        callbacks: float | None = 0.001,
        slow: float | None = 0.1,
        most_files: int = 10,
        signum: int | None = None,
    ) -> None:
        r.guard.check()
        if '_turn' in vars(r):
            raise ReactorError('this reactor already has a flight recorder: close it first')
        self.seconds: float = time_limit('seconds', seconds)
        self.limit: float = float('inf') if callbacks is None else duration('callbacks', callbacks)
        self.slow: float = float('inf') if slow is None else time_limit('slow', slow)
        self._most_files = whole('most_files', most_files, 1, unit='number of files')
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._r = r
        self._entries: deque[Any] = deque(maxlen=int(self.seconds / RESOLUTION) + 2)
        self._callbacks: deque[Any] = deque(maxlen=MOST_CALLBACKS)
        self._entry_ends = 0.0  # a turn that begins before this time belongs to the last entry
        self._after_long = False  # the last turn took longer than RESOLUTION
        self._next_file = 0.0  # until then, nothing causes a file
        self._timer: Timer | None = None  # of the file that is due
        self._reason = ''
        self._files = 0
        self.closed: bool = False
        self._handler = None if signum is None else r.add_signal_handler(signum, self._trigger, f'signal {signum}')
        if self._handler is not None:
            self._handler.unref()
        self._note(r.kernel.clock(), r.kernel.clock())
        self._entry_ends = 0.0  # the first entry only has the counters before the second one
        vars(r)['_turn'] = self.turn
        if callbacks is not None:
            r.phase_timer.add(self)
        r.add_exit_callback(self.close)

    def close(self) -> None:
        """Stop recording. A file that is due is written first. Closing twice does nothing."""
        if self.closed:
            return
        self.closed = True
        del vars(self._r)['_turn']
        self._r.phase_timer.remove(self)
        if self._handler is not None:
            self._handler.close()
        if self._timer is not None:
            self._write_now(self._reason)
        self._entries.clear()  # the reactor keeps this object until its end, because of the exit callback
        self._callbacks.clear()

    def save(self, path: StrPath) -> None:
        """Write what is recorded now to a file, atomically. This blocks the loop for up to half a second.

        Raises:
            OSError: The file cannot be written.
        """
        write_trace(self.recording('save()'), path)

    def recording(self, reason: str) -> Recording:
        """Return what is recorded now. It does not change any more, so any thread may use it."""
        since = self._r.kernel.clock() - self.seconds
        entries, callbacks = list(self._entries), list(self._callbacks)
        return Recording(entries, callbacks, since, time() - self._r.kernel.clock(), os.getpid(), reason)

    # -- methods for the loop

    def turn(self, limit: float | None) -> None:
        """Run a turn and record it. Called by the loop instead of its own method."""
        r = self._r
        try:
            Loop._turn(r, limit)
        except Exception as exc:
            self._note(r.now, r.kernel.clock())
            self._write_now(left_run(exc))
            raise
        ended = r._turn_began
        self._note(r.now, ended)
        if ended - r.now >= self.slow:
            self._trigger(f'a turn took {ended - r.now:.3f} s')
        if r._main_error is not None:
            self._write_now(left_run(r._main_error))

    def _note(self, began: float, ended: float) -> None:
        c, entries = self._r.counters, self._entries
        if ended - began >= RESOLUTION:
            self._entry_ends, self._after_long = 0.0, True
        elif self._after_long:
            self._after_long = False  # this turn is an entry of its own: it shows what has waited for the long one
        elif began < self._entry_ends:
            began = entries.pop()[0]
        else:
            self._entry_ends = began + RESOLUTION
        entries.append((
            began, ended, c.loop_count, c.events, c.dispatch_time, c.timers_time, c.soon_time, c.completions_time,
            c.timers_fired, c.timer_lag_sum, c.bytes_in, c.bytes_out, c.incoming, c.outgoing,
        ))  # fmt: skip

    def passed(self, phase: str, began: float, ended: float, fn: object, item: object) -> None:
        """Record a callback."""
        # Nothing waits long for a short callback, whose turn may share its entry with others.
        seconds = ended - began
        left = self._r.phase_timer.left(phase) if seconds >= RESOLUTION else None
        self._callbacks.append((phase, began, ended, where(fn), connection(item), left))
        if seconds >= self.slow:
            self._trigger(f'{where(fn)} took {seconds:.3f} s')

    # -- files

    def _trigger(self, reason: str) -> None:
        """Let a file be written soon, unless one is due, or there was one a short time ago."""
        now = self._r.kernel.clock()
        if self._folder is not None and self._timer is None and now >= self._next_file:
            self._reason, self._next_file = reason, now + max(self.seconds, AFTERMATH)
            self._timer = self._r.call_later(AFTERMATH, self._write_in_thread)
            self._timer.unref()

    def _write_in_thread(self) -> None:
        self._timer = None
        recording, path = self.recording(self._reason), self._new_path()
        self._r.run_in_thread(self._write, recording, path, on_done=self._written).unref()

    def _write_now(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._folder is not None:
            try:
                written = self._write(self.recording(reason), self._new_path())
            except OSError as exc:
                self._written(None, exc)
            else:
                self._written(written, None)

    def _new_path(self) -> Path:
        assert self._folder is not None
        self._files += 1
        return self._folder / f'{trace_name(os.getpid())}-{self._files:04}.json'

    def _write(self, recording: Recording, path: Path) -> tuple[str, Path]:
        """Write a file, remove the oldest ones, and return the reason and the path. May run in a thread."""
        write_trace(recording, path)
        # The names begin with the time, so the first ones are the oldest.
        for old in sorted(path.parent.glob('trace-*.json'))[: -self._most_files]:
            old.unlink(missing_ok=True)
        return recording.reason, path

    def _written(self, written: tuple[str, Path] | None, exc: BaseException | None) -> None:
        if written is None:
            log('error', 'the flight recorder cannot write to %s: %s; free some space or change folder=',
                str(self._folder), describe(exc))  # fmt: skip
        else:
            log('warning', 'flight recorder: %s; the last %g s are in %s', written[0], self.seconds, str(written[1]))
