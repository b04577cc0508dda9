"""Paths: files and directories whose changes are told.

Owns the way of a change from the library's thread into the loop. Knows nothing of how a system notices changes: that is
the library watchdog's, behind the extra `paths`. It was chosen over watchfiles, which is as well kept, because it needs
nothing besides the standard library, while watchfiles brings anyio, a whole framework of coroutines.

The rule: the thread appends to a queue with a limit and rings once, so a flood of changes costs the loop a call a turn
and a bounded queue; what the thread tells after the end is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from os.path import basename, dirname, join
from typing import Any

from ..errors import HandleClosed, ReactorError
from ..loop.checks import file_path
from ..loop.watcher import Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callbacks import Loop
    from ..kernel import Kernel

QUEUE_LIMIT = 1000  # changes that the loop has not taken yet; whoever makes more has to be looked at as a whole
LAST_JOIN = 1.0  # seconds for the library's thread to end when the reactor is closed; it takes up to half of one

# The library's words and ours. It has more, for opening and closing, which change nothing.
CHANGES = {'created': 'created', 'modified': 'changed', 'attrib': 'changed', 'deleted': 'deleted'}


class WatchedPath(Handle):
    """A file or directory that is watched, as returned by `watch_path`.

    `fn(handle, path, change, *args)` is called in the loop with 'created', 'changed' or 'deleted': of a file for
    itself, of a directory for what is directly in it, and for itself when it is deleted. `path` begins with the path as
    it was given. Several changes of one path between two turns are told as one, the last; a new file that was written
    to is 'created'. A file that is replaced by renaming another, as many editors save, is 'created'.

    A deleted file is watched on: it is 'created' when it comes again. With its directory, or as a directory, it is gone
    for good, and the handle closes after telling. When more changes come than can wait (1,000), the rest are told as
    one 'changed' of the watched path itself: look at all of it. An exception in `fn` is logged, and the watch goes on.
    Each watch costs three threads and, on Linux, one of the 128 inotify instances of a user: for many files watch their
    directory.
    """

    __slots__ = ('_kernel', '_observer', 'args', 'changes', 'fn', 'path')

    leads_to: tuple[tuple[str, str], ...] = (('handle_change', 'fn'),)

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        path: str,
        fn: Callable[..., object],
        args: tuple[Any, ...],
        changes: Changes,
        observer: Any,
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.path: str = path
        self.fn: Callable[..., object] | None = fn
        self.args: tuple[Any, ...] = args
        self.changes: Changes = changes
        self._kernel = kernel
        self._observer = observer
        loop.watchers.park(self)

    def ring(self) -> None:
        """Called in the library's thread when there are changes to take."""
        self.loop.call_soon_threadsafe(self.handle_changes)

    def handle_changes(self) -> None:
        """Called in the loop after the thread rang."""
        if self.closed:
            return
        completions = self.loop.completions
        for path, change in self.changes.take():
            completions.append((self, WatchedPath.handle_change, (path, change)))
        if self.changes.ended:
            completions.append((self, WatchedPath.close, ()))

    def handle_change(self, path: str, change: str) -> None:
        """Told as a completion: one change."""
        if self.fn is not None:
            self.fn(self, path, change, *self.args)

    def close(self) -> None:
        """Watch no more: `fn` is not called again, and the thread ends. Closing twice is fine."""
        if not self.closed:
            self.loop.guard.check_thread()
            observer = self._forget()
            try:
                # The library waits in `stop` for the end of its threads: not in the loop.
                self._kernel.start_thread(observer.stop, 'reactor-path-end')
            except RuntimeError:
                observer.stop()  # There are no more threads: a short wait is better than a thread that never ends.

    def reset(self, exc: BaseException | None) -> None:
        """Called when the reactor is closed: end the thread and wait for its end."""
        if not self.closed:
            observer = self._forget()
            observer.stop()
            observer.join(LAST_JOIN)

    @property
    def closed(self) -> bool:
        return self.fn is None

    def waits_for(self) -> str:
        return 'a change'

    def __repr__(self) -> str:
        return f'<WatchedPath {self.path!r}{" closed" if self.closed else ""}>'

    def _forget(self) -> Any:
        self.loop.watchers.remove(self)
        observer, self._observer, self.fn, self.args = self._observer, None, None, ()
        self.changes.close()
        return observer


class Changes:
    """What the library's thread tells, until the loop takes it; its `dispatch` is what the library calls.

    folder, name  the directory that the library watches, and the file in it that is meant, None for all
    path          the watched path as the user gave it
    """

    __slots__ = ('_events', '_folder', '_gone', '_name', '_overflowed', '_path', '_ring', '_rung', 'ended')

    def __init__(self, folder: str, name: str | None, path: str) -> None:
        self.ended: bool = False  # nothing more can come, and all that came was taken
        self._gone = False  # the directory itself
        self._folder = folder
        self._name = name
        self._path = path
        self._events: deque[tuple[str, str]] = deque()
        self._overflowed = False
        self._rung = False
        self._ring: Callable[[], object] | None = None

    def open(self, ring: Callable[[], object]) -> None:
        """Have `ring` called, in the thread, when there is something to take; once for each `take`."""
        self._ring = ring
        if self._events:
            self._call()

    def close(self) -> None:
        """Drop what the thread still tells."""
        self._ring = None

    def take(self) -> list[tuple[str, str]]:
        """What has changed since the last time: each path once, with the last that happened to it."""
        self._rung = False  # before the queue is taken: who finds it up was in time
        self.ended = self._gone  # likewise, or the watch would end before the deletion is reported
        told: dict[str, str] = {}
        for _ in range(len(self._events)):
            path, change = self._events.popleft()
            if change == 'changed' and told.get(path) == 'created':
                continue
            told.pop(path, None)
            told[path] = change
        if self._overflowed:
            self._overflowed = False
            told[self._path] = 'changed'
        return list(told.items())

    def dispatch(self, event: Any) -> None:
        """Called by the library, in its thread."""
        for path, change in self._meant(event):
            if len(self._events) < QUEUE_LIMIT:
                self._events.append((path, change))
            else:
                self._overflowed = True
            if change == 'deleted' and event.src_path == self._folder:
                self._gone = True
            self._call()

    def _call(self) -> None:
        ring = self._ring
        if ring is not None and not self._rung:
            self._rung = True
            try:
                ring()
            except HandleClosed:
                pass  # the reactor was closed meanwhile
            except MemoryError:  # which would end the library's thread
                self._overflowed, self._rung = True, False

    def _meant(self, event: Any) -> Iterator[tuple[str, str]]:
        if event.event_type == 'moved':
            changes = [(event.src_path, 'deleted'), (event.dest_path, 'created')]
        else:
            changes = [(event.src_path, CHANGES.get(event.event_type, ''))]
        for path, change in changes:
            if path == self._folder:
                if change == 'deleted':
                    yield self._path, change
            elif change and dirname(path) == self._folder:
                if self._name is None:
                    yield join(self._path, basename(path)), change
                elif basename(path) == self._name:
                    yield self._path, change


def watch(loop: Loop, kernel: Kernel, path: Any, fn: Callable[..., object], args: tuple[Any, ...]) -> WatchedPath:
    """Watch a path; see `Reactor.watch_path`."""
    file_path('path', path)
    try:
        from watchdog.observers import Observer
    except ImportError:
        raise ReactorError(
            "watch_path needs the library watchdog; install it with: pip install 'selectors-reactor[paths]'"
        ) from None
    # Of a file its directory is watched: a watch on the file itself would end when it is replaced.
    given, folder, name = kernel.find_path(path)
    changes = Changes(folder, name, given)
    observer = Observer()
    try:
        observer.schedule(changes, folder)  # type: ignore[arg-type]  # all that it calls of a handler is `dispatch`
        observer.start()
        handle = WatchedPath(loop, kernel, given, fn, args, changes, observer)
    except BaseException:
        observer.stop()
        raise
    changes.open(handle.ring)
    return handle
