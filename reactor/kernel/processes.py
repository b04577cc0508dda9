"""The calls of `Kernel` that concern processes, threads, signals and forks.

The class keeps one list for the whole process, `owners`: the reactors that have installed signal handlers or the wakeup
descriptor. In a forked child, each of them restores what was installed before.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # functions of `signal` convert to enums, which takes 10 us per call
import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from subprocess import Popen

SIGTERM = signal.SIGTERM
SIGKILL = getattr(signal, 'SIGKILL', signal.SIGTERM)  # Windows has only one way to end a process
EXIT_UNKNOWN = 255  # the exit code of a child that other code has reaped


@cache
def _in_main_interpreter() -> bool:
    # Called in the main thread of an interpreter. For this invalid descriptor, the main interpreter raises OSError,
    # and a sub-interpreter raises ValueError.
    try:
        signal.set_wakeup_fd(-2)
    except OSError:
        return True
    except ValueError:
        pass
    return False


@cache
def _watch_forks() -> None:
    # Runs only once per process, because the hooks cannot be removed.
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


_masks: dict[int, Any] = {}  # the signal mask of each thread that is forking now


def _before_fork() -> None:
    # A signal that reaches the child before our handlers are removed there would be lost, so block signals until then.
    if Processes.owners:
        _masks[threading.get_ident()] = _signal.pthread_sigmask(signal.SIG_BLOCK, _signal.valid_signals())


def _after_fork() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    try:
        for owner in reversed(Processes.owners[:]):
            owner.on_fork()
    finally:
        _after_fork()


class Processes:
    """The part of `Kernel` that deals with processes, threads and signals."""

    # The handler that raises `KeyboardInterrupt`.
    default_int_handler: Callable[[int, Any], object] = staticmethod(signal.default_int_handler)
    owners: ClassVar[list[Any]] = []  # the latest owner is last; see `WakeupClaim`

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        """Run `target` in a daemon thread."""
        threading.Thread(target=target, name=name, daemon=True).start()

    def pid(self) -> int:
        """Return the ID of this process, which is different after a fork."""
        return os.getpid()

    def thread(self) -> int:
        """Return the identity of the calling thread."""
        return threading.get_ident()

    def in_main_thread(self) -> bool:
        """Return whether the caller may install signal handlers: in the main thread of the main interpreter."""
        return threading.current_thread() is threading.main_thread() and _in_main_interpreter()

    def spawn(
        self, args: list[Any], stdin: Any, stdout: Any, stderr: Any, env: Any, cwd: Any, passed: list[int]
    ) -> Popen[bytes]:
        """Start a child. Return once its program is running; raise OSError if the program cannot be started."""
        import subprocess

        if passed and os.name != 'posix':
            raise OSError(errno.ENOTSUP, 'on this platform children get only their three standard descriptors')
        return subprocess.Popen(args, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, pass_fds=passed)

    def pidfd(self, pid: int) -> int:
        """Return a descriptor that becomes readable when a child has ended, or -1 if there is none."""
        try:
            return os.pidfd_open(pid)
        except (AttributeError, OSError):
            return -1  # not Linux, too old, forbidden by a sandbox, no descriptor left, or reaped already

    def reap(self, child: Popen[bytes]) -> int | None:
        """Return the exit code of a child, or minus the signal that killed it; None while it runs.

        Raises ChildProcessError when other code has reaped it.
        """
        if os.name != 'posix':
            return child.poll()
        if child.returncode is not None:
            return child.returncode  # it was reaped earlier, but no memory was left to report that
        # Do not call `child.poll`, which returns 0 for a child that other code has reaped.
        try:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:
            child.returncode = EXIT_UNKNOWN
            raise
        if not pid:
            return None
        child.returncode = os.waitstatus_to_exitcode(status)
        return child.returncode

    def signal_child(self, child: Popen[bytes], pidfd: int, signum: int) -> None:
        """Send a signal to a child that has not been reaped yet."""
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signum)
        elif os.name == 'posix':
            os.kill(child.pid, signum)
        else:
            child.send_signal(signum)

    def set_wakeup_fd(self, fd: int) -> int:
        """Have each signal write a byte to `fd`. Return the previous descriptor, or -1 if there was none."""
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)

    def signal(self, signum: int, handler: Any) -> Any:
        """Install a signal handler, and return the previous one."""
        return _signal.signal(signum, handler if callable(handler) else int(handler))

    def getsignal(self, signum: int) -> Any:
        """Return the installed handler of a signal, or None if it was not installed from Python."""
        return _signal.getsignal(signum)

    def raise_signal(self, signum: int) -> None:
        """Send a signal to this process."""
        signal.raise_signal(signum)

    def watch_forks(self) -> None:
        """From now on, have each forked child undo what the reactors in `owners` have installed.

        The child inherits our handlers and the wakeup descriptor. Without this, SIGTERM would not end it, and bytes for
        its own signals would be written to our wakeup, or to whatever file gets that number in the child.
        """
        _watch_forks()
