"""Child processes: started, signalled and reaped by the reactor.

A child is reaped and signalled only in the loop's thread. So a signal never reaches another process that got the same
process id later. With a pidfd this always holds; without a pidfd, only if no other code reaps our children.

On Linux a pidfd reports the exit of a child. Without a pidfd (another system, a sandbox, no descriptor left), a timer
polls for the exit, often at first and then less and less often. There is no SIGCHLD handler, because it could only be
installed in the main thread, and would be shared with all other code in the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EBADF
from typing import TYPE_CHECKING, Any

from ..errors import ReactorError
from ..hints import AnyPath
from ..kernel import Kernel
from ..kernel.processes import EXIT_UNKNOWN, SIGKILL, SIGTERM
from ..loop.api import MOST_SIGNUM
from ..loop.checks import file_path, shown, whole
from ..loop.log import describe, log
from ..loop.timers import Timer
from ..loop.watcher import READ, Handle
from ..net.options import Callbacks, Options, check_callback
from .pipe import CheckedReadPipe, CheckedWritePipe, Pipe, ReadPipe, WritePipe

if TYPE_CHECKING:
    from subprocess import Popen

    from ..callbacks import Loop, OnExit, PipeOptions

# The same values as in `subprocess`, so that the constants of both modules can be used.
PIPE = -1
STDOUT = -2
DEVNULL = -3
STDIO = ('stdin', 'stdout', 'stderr')

FIRST_LOOK = 0.001  # seconds until a child without a pidfd is polled for the first time; doubled each time
LONGEST_LOOK = 0.25  # seconds: the longest time between two polls; 200 children then cost less than 1 % of a core
DEATH_LOOKS = 5000  # number of polls for the end of a killed child, a millisecond apart, when the reactor is closed


class Process(Handle):
    """A child process, as returned by `spawn`.

    The end of the child's output is a separate event. It is reported by `on_eof` and `on_close` of the pipes, before or
    after `on_exit`. It can come much later if a grandchild still has the pipe open. Open pipes keep the loop running.

    Attributes:
        pid: Process id.
        args: The command.
        stdin: Stream to the child's standard input if `spawn` got `stdin=PIPE`; otherwise None.
        stdout: Stream from the child's standard output if `spawn` got `stdout=PIPE`; otherwise None.
        stderr: Stream from the child's standard error if `spawn` got `stderr=PIPE`; otherwise None.
        on_exit: Called once as `on_exit(process, code, signal)` when the child has ended and has been reaped. The
            arguments are its exit code and None, or None and the signal that killed it. If other code has reaped the
            child, its exit code is unknown: the code is then 255, and a warning is logged.
    """

    __slots__ = (  # noqa: RUF023  (by what they are for)
        # the public attributes
        'pid', 'args', 'stdin', 'stdout', 'stderr', 'on_exit',
        # the child, and how its exit is detected
        '_kernel', '_child', '_pidfd', '_timer', '_closing',
    )  # fmt: skip

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
        self._child: Popen[bytes] | None = child  # None after the child has been reaped
        self._closing = False
        self._timer: Timer | None = None  # polls for the exit if there is no pidfd
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
        """Called when the pidfd is readable: the child has ended."""
        if not self._reap():  # a debugger that traces the child has to reap it first
            self.loop.spins.no_progress(self)

    def handle_look(self, delay: float) -> None:
        """Called by the timer if there is no pidfd: check whether the child has ended."""
        if not self._reap():
            self._look_in(min(2 * delay, LONGEST_LOOK))

    def handle_exit(self, code: int | None, signum: int | None) -> None:
        """Call `on_exit` and drop the callback; called in the completions phase."""
        if self._child is not None:
            self._forget()  # an earlier call failed for lack of memory
        on_exit, self.on_exit = self.on_exit, None
        if on_exit is not None:
            on_exit(self, code, signum)

    def handle_lost(self, exc: OSError) -> None:
        self._pidfd = -1  # the number may already belong to another file
        self._look_in(FIRST_LOOK)

    def handle_refused(self, exc: Exception) -> None:
        self._close_pidfd()  # the child itself is fine: poll for its exit instead
        self._look_in(FIRST_LOOK)

    def send_signal(self, signum: int) -> bool:
        """Send a signal to the child.

        Args:
            signum: Number of the signal.

        Returns:
            False if the child has already ended.

        Raises:
            TypeError: `signum` is not an int.
            ValueError: `signum` is out of range.
            OSError: The signal does not exist on this system, or the caller lacks permission (PermissionError).
            ReactorError: The calling thread is not the one that runs the reactor.
        """
        whole('signum', signum, 0, MOST_SIGNUM, 'number of a signal')
        self.loop.guard.check_thread()
        # Without a pidfd, the process id is safe to use only until the child has been reaped, so check that first.
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
        """Send SIGTERM. Returns False if the child has already ended."""
        return self.send_signal(SIGTERM)

    def kill(self) -> bool:
        """Send SIGKILL. Returns False if the child has already ended."""
        return self.send_signal(SIGKILL)

    def close(self) -> None:
        """Kill the child and close its pipes; `on_exit` is called when it is reaped. Closing twice does nothing.

        Closing the reactor does the same, and waits until the child has ended. To start a process that outlives the
        reactor, use `subprocess`.
        """
        self.loop.guard.check_thread()
        self._closing = True
        for pipe in self.stdin, self.stdout, self.stderr:
            if pipe is not None:
                pipe.abort()
        try:
            self.kill()
        except PermissionError:
            pass  # the child runs as another user and cannot be killed; its pipes are closed

    def reset(self, exc: BaseException | None) -> None:
        """Called when the reactor is closed: kill the child and wait until it has ended."""
        self.close()
        for _ in range(DEATH_LOOKS):
            if self._child is None or self._reap():
                return
            self._kernel.sleep(0.001)
        log('warning', '%s has not ended %g s after SIGKILL, and is abandoned', self, DEATH_LOOKS / 1000)
        self._forget()

    @property
    def closed(self) -> bool:
        """Whether the child has ended or `close` was called."""
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
            log(
                'warning',
                '%s was reaped by other code, so its exit code is unknown; look for os.wait() or a SIGCHLD handler',
                self,
            )
            status = EXIT_UNKNOWN
        if status is None:
            return False
        how = (status, None) if status >= 0 else (None, -status)
        self.loop.completions.append((self, Process.handle_exit, how))  # before `_forget`, which may run out of memory
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
        except OSError as exc:  # other code has closed the pidfd
            self.loop.spins.close_failed(exc)

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
    """Start a child; see `Reactor.spawn`. If that fails, the steps already taken are undone."""
    words, passed, settings = check_args(args), check_descriptors(kernel, pass_fds), Options(**options)
    given = [check_stdio(kernel, name, what) for name, what in zip(STDIO, stdio, strict=True)]
    check_callback('on_exit', on_exit, '(process, code, signal)')
    check_environment(env)
    if cwd is not None:
        file_path('cwd', cwd)
    loop.guard.check()
    read_pipe, write_pipe = (CheckedReadPipe, CheckedWritePipe) if checked else (ReadPipe, WritePipe)
    pipes: list[Pipe | None] = []
    theirs = []
    child: Popen[bytes] | None = None
    try:
        for number, what in enumerate(stdio):
            pipe: Pipe | None = None
            if what is not None and what == PIPE:
                ours, given[number] = kernel.pipe(writing=number == 0)
                theirs.append(given[number])
                # Nothing is received on stdin, and it may be idle for long, so only the write timeout applies there.
                own = settings if number else settings.changed(read_timeout=None, idle_timeout=None)
                pipe = (read_pipe if number else write_pipe)(loop, own, Callbacks(None), None)
                _attach(pipe, ours)
            pipes.append(pipe)
        child = kernel.spawn(words, given[0], given[1], given[2], env, cwd, passed)
        for name, pipe in zip(STDIO, pipes, strict=True):
            if pipe is not None:
                pipe.peer = f'{name} of process {child.pid}'
        return Process(loop, kernel, words, child, pipes, on_exit)
    except BaseException:
        if child is not None:  # creating the handle or a pipe failed
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
    """Return the command as a list. Raises TypeError or ValueError if it is not a list of words."""
    if isinstance(args, str | bytes) or not hasattr(args, '__iter__'):
        raise TypeError(
            f"args must be a list of words, the program first, not {shown(args)}; to use a shell: ['sh', '-c', command]"
        )
    words = list(args)
    if not words:
        raise ValueError('args is empty; it needs at least the name of the program')
    for word in words:
        if not isinstance(word, str | bytes) and not hasattr(word, '__fspath__'):
            raise TypeError(f'args must be a list of str, bytes or paths, and cannot contain {shown(word)}')
        file_path('a word of args', word)
    return words


def check_environment(env: Any) -> None:
    """Raise TypeError or ValueError unless `env` is None or a mapping of str or bytes."""
    if env is None:
        return
    if not hasattr(env, 'items'):
        raise TypeError(f'env must be a mapping of names to values, or None, not {shown(env)}')
    for name, value in env.items():
        file_path('a name in env', name)
        file_path(f'the value of {shown(name)} in env', value)


def check_descriptors(kernel: Kernel, fds: Iterable[Any]) -> list[int]:
    """Return the numbers of the descriptors to pass on. Raises TypeError or ValueError, or OSError if one is closed."""
    if not hasattr(fds, '__iter__') or isinstance(fds, str | bytes):
        raise TypeError(f'pass_fds must be a list of descriptor numbers or objects with a fileno(), not {shown(fds)}')
    numbers = [fd.fileno() if hasattr(fd, 'fileno') else fd for fd in fds]
    for number in numbers:
        if type(number) is not int:
            raise TypeError(
                f'pass_fds must be a list of descriptor numbers or objects with a fileno(); it contains {shown(number)}'
            )
        if number < 0:
            raise ValueError(f'pass_fds needs open descriptors, not {number}; has the file been closed already?')
        # Check this now, because starting a child opens pipes, and one of the pipes could get this number.
        if not kernel.is_open(number):
            raise OSError(EBADF, f'descriptor {number} of pass_fds is not open')
    return numbers


def check_stdio(kernel: Kernel, name: str, what: Any) -> Any:
    """Return `what` if it is a valid value for `name`, such as 'stdin'. Raises TypeError, ValueError or OSError."""
    if isinstance(what, bool):
        raise TypeError(f'{name} must be PIPE, DEVNULL, None, a file or a descriptor, not {what!r}')
    if isinstance(what, int):
        if what < 0 and what not in (PIPE, DEVNULL) and not (what == STDOUT and name == 'stderr'):
            raise ValueError(f'{name} must be PIPE, DEVNULL, None, a file or a descriptor, not {what!r}')
        if what >= 0 and not kernel.is_open(what):
            raise OSError(
                EBADF, f'{name} must be PIPE, DEVNULL, None, a file or a descriptor, and {shown(what)} is not open'
            )
    elif what is not None and not hasattr(what, 'fileno'):
        raise TypeError(f'{name} must be PIPE, DEVNULL, None, a file or a descriptor, not {shown(what)}')
    return what
