"""Children: processes that the reactor starts, feeds, hears, and reaps.

Owns each child from `spawn` until it was reaped, and the descriptor that stands for it. Knows nothing of what its pipes
carry. The rule: a child is reaped and signalled in the loop's thread alone, so a signal never reaches a stranger that
got its number. Where the system has pidfds that holds whatever others do; elsewhere unless others reap our children.

Without a pidfd (not Linux, forbidden by a sandbox, no descriptor left) the child is asked after by a timer, soon at
first and then ever more rarely. There is no handler of SIGCHLD: it would belong to the main thread, and to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EBADF
from typing import Any

from ..errors import ReactorError
from ..kernel import EXIT_UNKNOWN, SIGKILL, SIGTERM
from ..loop.api import MOST_SIGNUM
from ..loop.checks import file_path, shown, whole
from ..loop.log import describe, log
from ..loop.watcher import READ, Handle
from ..net.options import Callbacks, Options, check_callback
from .pipe import CheckedReadPipe, CheckedWritePipe, ReadPipe, WritePipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen

    from ..callbacks import Loop, OnExit, PipeOptions
    from ..hints import AnyPath
    from ..kernel import Kernel
    from ..loop.timers import Timer
    from .pipe import Pipe

# The numbers that `subprocess` gives them, so that either may be used.
PIPE = -1
STDOUT = -2
DEVNULL = -3
STDIO = ('stdin', 'stdout', 'stderr')

FIRST_LOOK = 0.001  # seconds from the start of a child to the first look at it where there is no pidfd; then doubled
LONGEST_LOOK = 0.25  # seconds between two looks: two hundred children cost less than a hundredth of a core
DEATH_LOOKS = 5000  # a millisecond each, for a killed child to be gone when the reactor is closed


class Process(Handle):
    """A child, as returned by `spawn`.

    pid                     its number
    args                    what it was started with
    stdin, stdout, stderr   streams for what was asked for as `PIPE`, else None
    on_exit                 `on_exit(process, code, signal)`, once, when it has ended and was reaped: its exit code and
                            None, or None and the signal that killed it. Code 255 and a warning in the log when
                            somebody else has reaped it, since then nobody can tell

    The end of its output is another event, told by the `on_eof` and `on_close` of its pipes: before `on_exit` or after
    it, and long after it when a child of the child holds the pipe. Pipes that are open keep the loop running.
    """

    __slots__ = (
        '_child',
        '_closing',
        '_kernel',
        '_pidfd',
        '_timer',
        'args',
        'on_exit',
        'pid',
        'stderr',
        'stdin',
        'stdout',
    )

    leads_to: tuple[tuple[str, str], ...] = (('handle_exit', 'on_exit'),)
    stdin: WritePipe | None
    stdout: ReadPipe | None
    stderr: ReadPipe | None

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        args: list[Any],
        child: Popen[bytes],
        pipes: list[Any],
        on_exit: OnExit | None,
    ) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.pid: int = child.pid
        self.args: list[Any] = args
        self.stdin, self.stdout, self.stderr = pipes
        self.on_exit: OnExit | None = on_exit
        self._kernel = kernel
        self._child: Popen[bytes] | None = child  # None when it was reaped
        self._closing = False
        self._timer: Timer | None = None  # of the next look, where there is no pidfd
        self._pidfd = kernel.pidfd(child.pid)
        self.events = 0
        try:
            if self._pidfd >= 0:
                try:
                    loop.watchers.add(self, READ)
                    return
                except (OSError, ReactorError):
                    self._close_pidfd()
            loop.watchers.park(self)
            self._look_in(FIRST_LOOK)
        except BaseException:
            self._forget()
            raise

    def handle_read(self) -> None:
        """The pidfd is readable: it has ended."""
        if not self._reap():  # a debugger that traces it has to reap it first
            self.loop.spins.no_progress(self)

    def handle_look(self, delay: float) -> None:
        """Called by the timer where there is no pidfd: whether it has ended meanwhile."""
        if not self._reap():
            self._look_in(min(2 * delay, LONGEST_LOOK))

    def handle_exit(self, code: int | None, signum: int | None) -> None:
        """Told as the completion of its end: `on_exit`, which is dropped then."""
        if self._child is not None:
            self._forget()  # there was no memory for it before
        on_exit, self.on_exit = self.on_exit, None
        if on_exit is not None:
            on_exit(self, code, signum)

    def handle_lost(self, exc: OSError) -> None:
        self._pidfd = -1  # the number may be another's
        self._look_in(FIRST_LOOK)

    def handle_refused(self, exc: Exception) -> None:
        self._close_pidfd()  # the child is not to blame: go on as where there is no pidfd
        self._look_in(FIRST_LOOK)

    def send_signal(self, signum: int) -> bool:
        """Send it a signal; False when it has ended already.

        Raises PermissionError, TypeError and ValueError for what is not a number of a signal, OSError for one that the
        system does not have.
        """
        whole('signum', signum, 0, MOST_SIGNUM, 'number of a signal')
        self.loop.guard.check_thread()
        # Without a pidfd the number is its own only while it is not reaped, which is what this asks.
        if self._child is None or (self._pidfd < 0 and self._reap()):
            return False
        try:
            self._kernel.signal_child(self._child, self._pidfd, signum)
        except ProcessLookupError:
            return False
        except OSError as exc:
            if exc.errno != EBADF or self._pidfd < 0:
                raise
            self.loop.watchers.evict(self)  # other code has closed the pidfd
            return self.send_signal(signum)
        return True

    def terminate(self) -> bool:
        """Ask it to end (SIGTERM); False when it has ended already."""
        return self.send_signal(SIGTERM)

    def kill(self) -> bool:
        """End it now (SIGKILL); False when it has ended already."""
        return self.send_signal(SIGKILL)

    def close(self) -> None:
        """Kill it and close its pipes; `on_exit` tells when it was reaped. Twice is fine, and nothing after its end.

        Closing the reactor does the same and waits for its end, so no child is left. One that is to live longer is
        started by `subprocess` and not here.
        """
        self.loop.guard.check_thread()
        self._closing = True
        for pipe in self.stdin, self.stdout, self.stderr:
            if pipe is not None:
                pipe.abort()
        try:
            self.kill()
        except PermissionError:
            pass  # it runs as somebody else: its pipes are closed, more we cannot do

    def reset(self, exc: BaseException | None) -> None:
        """Called when the reactor is closed: kill it and wait until it is gone."""
        self.close()
        for _ in range(DEATH_LOOKS):
            if self._child is None or self._reap():
                return
            self._kernel.sleep(0.001)
        log('warning', '%s: still not dead after SIGKILL; it is left to the system', self)
        self._forget()

    @property
    def closed(self) -> bool:
        """True from `close` or its end on."""
        return self._closing or self._child is None

    def fileno(self) -> int:
        return self._pidfd

    def waits_for(self) -> str:
        return 'its end'

    def __repr__(self) -> str:
        state = 'ended' if self._child is None else 'closing' if self._closing else 'running'
        return f'<Process fd={self.fileno()} {state} pid={self.pid} {describe(self.args)}>'

    def _reap(self) -> bool:
        if self._child is None:
            return True
        try:
            status = self._kernel.reap(self._child)
        except ChildProcessError:
            log('warning', '%s: somebody else has reaped it; its exit code is not known', self)
            status = EXIT_UNKNOWN
        if status is None:
            return False
        how = (status, None) if status >= 0 else (None, -status)
        self.loop.completions.append((self, Process.handle_exit, how))  # first: the next may find no memory
        self._forget()
        return True

    def _forget(self) -> None:
        self.loop.watchers.remove(self)
        self._child = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd >= 0:
            self._close_pidfd()

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        try:
            self._kernel.close_fd(fd)
        except OSError:
            pass  # other code has closed it

    def _look_in(self, delay: float) -> None:
        self._timer = self.loop.timers.later(delay, Process.handle_look, self, delay)
        self._timer.unref()  # the handle itself keeps the loop running


def spawn(
    loop: Loop,
    kernel: Kernel,
    args: Iterable[AnyPath],
    stdio: tuple[Any, Any, Any],
    on_exit: OnExit | None,
    env: Any,
    cwd: AnyPath | None,
    pass_fds: Iterable[Any],
    options: PipeOptions,
    checked: bool,
) -> Process:
    """Start a child; see `Reactor.spawn`."""
    words, passed, settings = check_args(args), check_descriptors(kernel, pass_fds), Options(**options)
    streams = [check_stdio(kernel, name, what) for name, what in zip(STDIO, stdio, strict=True)]
    check_callback('on_exit', on_exit)
    check_environment(env)
    if cwd is not None:
        file_path('cwd', cwd)
    loop.guard.check()
    return _start(loop, kernel, words, streams, on_exit, env, cwd, passed, settings, checked)


def _start(
    loop: Loop,
    kernel: Kernel,
    args: list[Any],
    stdio: list[Any],
    on_exit: OnExit | None,
    env: Any,
    cwd: AnyPath | None,
    passed: list[int],
    options: Options,
    checked: bool,
) -> Process:
    """Start it, with arguments that are checked. Nothing is left of it when that fails."""
    read_pipe, write_pipe = (CheckedReadPipe, CheckedWritePipe) if checked else (ReadPipe, WritePipe)
    pipes: list[Pipe | None] = []
    given = list(stdio)
    theirs = []
    child: Popen[bytes] | None = None
    try:
        for number, what in enumerate(stdio):
            pipe: Pipe | None = None
            if what is not None and what == PIPE:
                ours, given[number] = kernel.pipe(writing=number == 0)
                theirs.append(given[number])
                # A child that reads and says nothing is no fault of its stdin: that is limited by writes alone.
                own = options if number else options.changed(read_timeout=None, idle_timeout=None)
                pipe = (read_pipe if number else write_pipe)(loop, own, Callbacks(None), None)
                _attach(pipe, ours)
            pipes.append(pipe)
        child = kernel.spawn(args, given[0], given[1], given[2], env, cwd, passed)
        for name, pipe in zip(STDIO, pipes, strict=True):
            if pipe is not None:
                pipe.peer = f'{name} of process {child.pid}'
        return Process(loop, kernel, args, child, pipes, on_exit)
    except BaseException:
        if child is not None:  # there was no memory for its handle
            kernel.signal_child(child, -1, SIGKILL)
            child.wait()
        for made in pipes:
            if made is not None:
                made.reset(None)
        raise
    finally:
        for end in theirs:
            end.close()


def _attach(pipe: Pipe, ours: Any) -> None:
    try:
        pipe.attach(ours)
    except BaseException:
        ours.close()
        raise


def check_args(args: Iterable[Any]) -> list[Any]:
    """The words of a command, the program first; TypeError or ValueError for anything else."""
    if isinstance(args, str | bytes) or not hasattr(args, '__iter__'):
        raise TypeError(
            f"args is a list of words, the program first, not {shown(args)}; for a shell's line: ['sh', '-c', line]"
        )
    words = list(args)
    if not words:
        raise ValueError('args is a list of words, the program first; this one is empty')
    for word in words:
        if not isinstance(word, str | bytes) and not hasattr(word, '__fspath__'):
            raise TypeError(f'args is a list of str, bytes or paths; {shown(word)} is none')
        file_path('a word of args', word)
    return words


def check_environment(env: Any) -> None:
    """A mapping of names to values, both str or bytes, or None; else TypeError or ValueError."""
    if env is None:
        return
    if not hasattr(env, 'items'):
        raise TypeError(f'env is a mapping of names to values, or None, not {shown(env)}')
    for name, value in env.items():
        file_path('a name in env', name)
        file_path(f'the value of {shown(name)} in env', value)


def check_descriptors(kernel: Kernel, fds: Iterable[Any]) -> list[int]:
    """The numbers of descriptors to hand on; TypeError or ValueError for what is none, OSError when it is not open."""
    if not hasattr(fds, '__iter__') or isinstance(fds, str | bytes):
        raise TypeError(f'pass_fds is a list of descriptors, numbers or what has a fileno(), not {shown(fds)}')
    numbers = [fd.fileno() if hasattr(fd, 'fileno') else fd for fd in fds]
    for number in numbers:
        if type(number) is not int:
            raise TypeError(f'pass_fds has descriptors, numbers or what has a fileno(); {shown(number)} is none')
        if number < 0:
            raise ValueError(f'pass_fds has open descriptors; {number} is none, or is closed already')
        # Asked here: starting a child opens pipes, and one of these may get the number.
        if not kernel.is_open(number):
            raise OSError(EBADF, f'descriptor {number} of pass_fds is not open')
    return numbers


def check_stdio(kernel: Kernel, name: str, what: Any) -> Any:
    """None, PIPE, DEVNULL, an open descriptor or a file (and STDOUT for stderr); else it raises."""
    if isinstance(what, bool):
        raise TypeError(f'{name} is PIPE, DEVNULL, None, a file or a descriptor, not {what!r}')
    if isinstance(what, int):
        if what < 0 and what not in (PIPE, DEVNULL) and not (what == STDOUT and name == 'stderr'):
            raise ValueError(f'{name} is PIPE, DEVNULL, None, a file or a descriptor, not {what!r}')
        if what >= 0 and not kernel.is_open(what):
            raise OSError(
                EBADF, f'{name} is PIPE, DEVNULL, None, a file or a descriptor, and {shown(what)} is not open'
            )
    elif what is not None and not hasattr(what, 'fileno'):
        raise TypeError(f'{name} is PIPE, DEVNULL, None, a file or a descriptor, not {shown(what)}')
    return what
