"""The client side of a control socket.

Every failure raises `NoAnswer`, with a message that says what to do.
"""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import struct
from typing import Any

TIMEOUT = 10.0  # seconds to wait for an answer, by default
LONGEST_ANSWER = 64 << 20  # bytes


class NoAnswer(Exception):
    """Raised when there is no connection, no permission or no answer in time, or when the answer is an error."""


class ControlClient:
    """A blocking connection to the control socket at `path`; waits up to `timeout` seconds for each answer."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        if not hasattr(socket, 'AF_UNIX'):
            raise NoAnswer('this platform has no Unix sockets')
        self._sock = socket.socket(socket.AF_UNIX)
        try:
            # Connect with a blocking call: a non-blocking connect fails at once when the backlog is full.
            limit = divmod(math.ceil(timeout * 1_000_000), 1_000_000)  # seconds and microseconds
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', *limit))
            self._sock.connect(path)
            self._sock.settimeout(timeout)
        except OSError as exc:
            self._sock.close()
            raise NoAnswer(_why(path, exc)) from None
        self._answers = self._sock.makefile('rb')

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its answer."""
        try:
            self._sock.sendall(json.dumps({'do': command, **arguments}).encode() + b'\n')
            line = self._answers.readline(LONGEST_ANSWER)
        except TimeoutError:
            raise NoAnswer(
                f'{self._path}: no answer within {self._timeout:g} s: the loop is blocked, or too many clients are '
                f'connected; py-spy dump --pid {self._pid()} shows what the program is doing'
            ) from None
        except OSError as exc:
            raise NoAnswer(f'{self._path}: {exc.strerror}; the program has ended') from None
        if not line.endswith(b'\n'):
            raise NoAnswer(f'{self._path}: the program has ended, or closed its control socket')
        try:
            answer: dict[str, Any] = json.loads(line)
            failed = not answer['ok']
        except (ValueError, TypeError, KeyError):
            raise NoAnswer(f'{self._path}: the server at this path is not a reactor control socket') from None
        if failed:
            raise NoAnswer(f'{self._path}: {command}: {answer.get("error")}')
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._sock.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _pid(self) -> str:
        try:  # the first field of struct ucred
            (pid,) = struct.unpack('i', self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4))
            return str(pid)
        except (AttributeError, OSError):
            return 'PID'


def _why(path: str, exc: OSError) -> str:
    """Explain why the connect failed and what to do."""
    if isinstance(exc, FileNotFoundError):
        return f'{path}: no such socket; the program creates it with observe.serve_control(r, {path!r})'
    if isinstance(exc, PermissionError):
        return f'{path}: not permitted{_owner(path)}'
    if isinstance(exc, BlockingIOError):
        return f'{path}: the backlog is full, because too many clients are waiting; try again later'
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return f'{path}: not a socket; give the path that the program passed to observe.serve_control'
    except OSError:
        pass
    if isinstance(exc, ConnectionRefusedError):
        return f'{path}: connection refused; the program that created the socket has ended'
    return f'{path}: {exc.strerror or exc}'


def _owner(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ': its folder is not accessible to this user'
    return f': the socket belongs to user {found.st_uid}, with mode {stat.S_IMODE(found.st_mode):o}; run as that user'
