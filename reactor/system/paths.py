"""Watches files and directories for changes, with the `watchdog` package (the extra `paths`).

watchdog was chosen over watchfiles because it needs only the standard library; watchfiles requires anyio.

Watchdog reports changes in its own thread, which appends them to a bounded queue and wakes the loop once. So the
loop makes one call per turn, however many changes there are. Changes reported after the watch is closed are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from os.path import basename, dirname, join
from typing import TYPE_CHECKING, Any

from ..errors import HandleClosed, ReactorError
from ..kernel import Kernel
from ..loop.checks import callback, file_path
from ..loop.watcher import Handle

if TYPE_CHECKING:
    from ..callbacks import Loop

QUEUE_LIMIT = 1000  # changes waiting for the loop; further changes are merged into one change of the watched path
LAST_JOIN = 1.0  # seconds to wait when the reactor is closed: watchdog's thread takes up to half a second to end

# Maps watchdog's event types to our changes. Its other types, for opening and closing files, are ignored.
CHANGES = {'created': 'created', 'modified': 'changed', 'attrib': 'changed', 'deleted': 'deleted'}


class WatchedPath(Handle):
    """A watched file or directory, as returned by `watch_path`.

    `fn(handle, path, change, *args)` is called in the loop; `change` is 'created', 'changed' or 'deleted'. For a file,
    changes to the file are reported. For a directory, changes to the files directly in it and its own deletion are
    reported. `path` begins with the watched path, exactly as it was passed.

    - If a path changes several times between two turns, only the last change is reported. But a new file that has also
      been written to is reported as 'created'. A file that is replaced by renaming another file over it, as many
      editors do, is reported as 'created', too.
    - A deleted file stays watched, and is reported as 'created' when it exists again. If the watched directory, or the
      directory that contains the watched file, is deleted, the handle reports this and closes.
    - If more than 1,000 changes are waiting, further changes are reported as one 'changed' for the watched path. Then
      check the whole watched path.
    - An exception in `fn` is logged, and the path stays watched.

    Each watch uses three threads and, on Linux, one of the user's 128 inotify instances. To watch many files, watch
    their directory.
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
        """Called in watchdog's thread when there are changes."""
        self.loop.call_soon_threadsafe(self.handle_changes)

    def handle_changes(self) -> None:
        """Called in the loop after `ring`."""
        if self.closed:
            return
        completions = self.loop.completions
        for path, change in self.changes.take():
            completions.append((self, WatchedPath.handle_change, (path, change)))
        if self.changes.ended:
            completions.append((self, WatchedPath.close, ()))

    def handle_change(self, path: str, change: str) -> None:
        """Report one change; called in the completions phase."""
        if self.fn is not None:
            self.fn(self, path, change, *self.args)

    def close(self) -> None:
        """Stop watching. `fn` is not called again, and watchdog's thread ends. Closing twice does nothing."""
        if not self.closed:
            self.loop.guard.check_thread()
            observer = self._forget()
            try:
                # `stop` waits until watchdog's threads have ended, and this wait must not block the loop.
                self._kernel.start_thread(observer.stop, 'reactor-path-end')
            except RuntimeError:
                observer.stop()  # no thread can be started; blocking briefly is better than a thread that never ends

    def reset(self, exc: BaseException | None) -> None:
        """Called when the reactor is closed: stop watchdog's thread and wait until it has ended."""
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
    """The queue between watchdog's thread, which calls `dispatch`, and the loop, which calls `take`.

    Args:
        folder: The directory that watchdog watches.
        name: The watched file in that directory; None for all files.
        path: The watched path as it was passed to `watch_path`.
    """

    __slots__ = ('_events', '_folder', '_gone', '_name', '_overflowed', '_path', '_ring', '_rung', 'ended')

    def __init__(self, folder: str, name: str | None, path: str) -> None:
        self.ended: bool = False  # whether the directory has been deleted, and all changes have been taken
        self._gone = False  # whether the directory has been deleted
        self._folder = folder
        self._name = name
        self._path = path
        self._events: deque[tuple[str, str]] = deque()
        self._overflowed = False
        self._rung = False
        self._ring: Callable[[], object] | None = None

    def open(self, ring: Callable[[], object]) -> None:
        """From now on, call `ring` in watchdog's thread when there are changes, at most once before each `take`."""
        self._ring = ring
        if self._events:
            self._call()

    def close(self) -> None:
        """Drop all further changes."""
        self._ring = None

    def take(self) -> list[tuple[str, str]]:
        """Return the changes since the last call: each path once, with its last change."""
        # Read both flags before the queue: a change that is appended later calls `ring` again, and when `_gone` is set,
        # the deletion of the directory is already in the queue.
        self._rung = False
        self.ended = self._gone
        last: dict[str, str] = {}
        for _ in range(len(self._events)):
            path, change = self._events.popleft()
            if change == 'changed' and last.get(path) == 'created':
                continue
            last.pop(path, None)
            last[path] = change
        if self._overflowed:
            self._overflowed = False
            last[self._path] = 'changed'
        return list(last.items())

    def dispatch(self, event: Any) -> None:
        """Called by watchdog, in its thread."""
        for path, change in self._relevant(event):
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
                pass  # the reactor has been closed
            except MemoryError:  # the exception would end watchdog's thread
                self._overflowed, self._rung = True, False

    def _relevant(self, event: Any) -> Iterator[tuple[str, str]]:
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
    callback('fn', fn, '(handle, path, change)', len(args))
    try:
        from watchdog.observers import Observer
    except ImportError:
        raise ReactorError(
            "watch_path needs the package watchdog; install it with pip install '.[paths]' in a checkout of this "
            "library, or with pip install 'watchdog>=6'"
        ) from None
    # For a file, watch its directory: a watch on the file itself would end when the file is replaced.
    given, folder, name = kernel.find_path(path)
    changes = Changes(folder, name, given)
    observer = Observer()
    try:
        observer.schedule(changes, folder)  # type: ignore[arg-type]  # `dispatch` is the only method that watchdog calls
        observer.start()
        handle = WatchedPath(loop, kernel, given, fn, args, changes, observer)
    except BaseException:
        observer.stop()
        raise
    changes.open(handle.ring)
    return handle
