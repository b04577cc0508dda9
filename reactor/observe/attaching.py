"""`python -m reactor.observe --pid PID`: open a control socket in a running program that has none.

Python 3.14 can run a script in another process of the same user (PEP 768, `sys.remote_exec`). The script opens a
control socket in a private folder, and closes it when the folder, or the process that asked, is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Self

from .asking import NoAnswer

FIRST = 3, 14  # the first Python with sys.remote_exec
NUDGE = 0.1  # seconds without an answer after which a sleeping process is woken up
STOPPED = 0.05  # seconds within which a process stops
INSTEAD = 'open a control socket in the program: observe.serve_control(r, PATH)'


class Attached:
    """A context manager: a control socket at `path` in the process `pid`.

    Args:
        pid: The process. It must run the same version of Python, as the same user.
        number: Which of its running reactors; None: the only one.
        timeout: Seconds until the process must have opened the socket.

    Raises:
        NoAnswer: The reason, and what to do.
    """

    def __init__(self, pid: int, number: int | None, timeout: float) -> None:
        if not hasattr(sys, 'remote_exec'):
            version = '.'.join(map(str, FIRST))
            raise NoAnswer(
                f'--pid needs Python {version} or later, in this process and in {pid}; before that, {INSTEAD}'
            )
        self.pid = pid
        self._folder = Path(tempfile.mkdtemp(prefix='reactor-'))
        self.path: str = str(self._folder / 'control')
        try:
            self._attach(number, timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder; the process then closes the socket within a second."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _attach(self, number: int | None, timeout: float) -> None:
        script, answer = self._folder / 'attach.py', self._folder / 'answer'
        arguments = self.path, str(answer), number, os.getpid()
        script.write_text(f'from reactor.observe.attached import open_socket\nopen_socket{arguments!r}\n')
        self._run(script)
        began, nudged = monotonic(), False
        while not answer.exists():
            waited = monotonic() - began
            if waited > timeout:
                raise NoAnswer(f'process {self.pid}: no answer within {timeout:g} s: its main thread is blocked')
            if waited > NUDGE and not nudged:
                nudged = True
                self._wake()
            sleep(0.005)
        found = json.loads(answer.read_text())
        if 'error' in found:
            raise NoAnswer(f'process {self.pid}: {found["error"]}')

    def _run(self, script: Path) -> None:
        if os.getuid() == 0:
            with suppress(OSError):  # the process must be able to read the script, whichever user runs it
                owner = os.stat(f'/proc/{self.pid}')
                os.chown(self._folder, owner.st_uid, owner.st_gid)
        try:
            sys.remote_exec(self.pid, str(script))  # type: ignore[attr-defined]  # since Python 3.14
        except PermissionError:
            raise NoAnswer(
                f'process {self.pid}: not permitted: run this as the user of the process, or as root; on Linux, '
                'also sysctl kernel.yama.ptrace_scope=0'
            ) from None
        except (OSError, RuntimeError) as exc:
            raise NoAnswer(
                f'process {self.pid}: {exc}; it must be a running Python of the same version, without '
                f'PYTHON_DISABLE_REMOTE_DEBUG; otherwise, {INSTEAD}'
            ) from None

    def _wake(self) -> None:
        """Have a process that sleeps in its selector run the script.

        On Linux, epoll_wait returns early when a process is stopped and continued (signal(7)). Python then looks for
        scripts and waits again.
        """
        if self._state() != 'S':
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)
            try:
                until = monotonic() + STOPPED
                while self._state() not in ('T', '') and monotonic() < until:
                    sleep(0.0005)
            finally:
                os.kill(self.pid, signal.SIGCONT)

    def _state(self) -> str:
        """Return the letter that /proc shows for the state of the process; '' where that is unknown."""
        try:
            text = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:
            return ''
        return text.rpartition(')')[2].split()[0]
