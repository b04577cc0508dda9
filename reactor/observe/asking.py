"""The other side of a control socket: connects, asks, and says in words why that did not work.

Owns one connection. Knows no command. The rule: whatever goes wrong is a `NoAnswer` that tells what to do.
"""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT = 10.0  # seconds
LONGEST_ANSWER = 64 << 20  # bytes


class NoAnswer(Exception):
    """Nobody there, not permitted, no answer in time, or an answer that is an error."""


class ControlClient:
    """A connection to the control socket at `path`; each answer takes at most `timeout` seconds. Blocks."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        if not hasattr(socket, 'AF_UNIX'):
            raise NoAnswer('this platform has no Unix sockets')
        self._sock = socket.socket(socket.AF_UNIX)
        try:
            # In a blocking connect: without waiting, a full backlog would be an error at once.
            limit = divmod(math.ceil(timeout * 1_000_000), 1_000_000)  # seconds and microseconds
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', *limit))
            self._sock.connect(path)
            self._sock.settimeout(timeout)
        except OSError as exc:
            self._sock.close()
            raise NoAnswer(_why(path, exc)) from None
        self._answers = self._sock.makefile('rb')

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command."""
        try:
            self._sock.sendall(json.dumps({'do': command, **arguments}).encode() + b'\n')
            line = self._answers.readline(LONGEST_ANSWER)
        except TimeoutError:
            raise NoAnswer(
                f'{self._path}: no answer within {self._timeout:g} s: its loop is busy, or as many as it lets in ask '
                f'already; py-spy dump --pid {self._pid()} shows what it does'
            ) from None
        except OSError as exc:
            raise NoAnswer(f'{self._path}: {exc.strerror}; the program has ended') from None
        if not line.endswith(b'\n'):
            raise NoAnswer(f'{self._path}: the program has ended, or closed its control socket')
        try:
            answer: dict[str, Any] = json.loads(line)
            failed = not answer['ok']
        except (ValueError, TypeError, KeyError):
            raise NoAnswer(f'{self._path}: who answers there is no control socket of a reactor') from None
        if failed:
            raise NoAnswer(f'{self._path}: {command}: {answer.get("error")}')
        return answer

    def close(self) -> None:
        """End the connection."""
        self._answers.close()
        self._sock.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _pid(self) -> str:
        try:  # struct ucred begins with it
            (pid,) = struct.unpack('i', self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4))
            return str(pid)
        except (AttributeError, OSError):
            return 'PID'


def _why(path: str, exc: OSError) -> str:
    """What stood in the way, in words."""
    if isinstance(exc, FileNotFoundError):
        return f'{path}: no such socket; the program makes it with observe.serve_control(r, {path!r})'
    if isinstance(exc, PermissionError):
        return f'{path}: not permitted{_owner(path)}'
    if isinstance(exc, BlockingIOError):
        return f'{path}: too many wait to ask already'
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return f'{path}: this is no socket'
    except OSError:
        pass
    if isinstance(exc, ConnectionRefusedError):
        return f'{path}: nobody listens; the program that made it has ended'
    return f'{path}: {exc.strerror or exc}'


def _owner(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ' to look there'
    return f': it belongs to user {found.st_uid}, with mode {stat.S_IMODE(found.st_mode):o}; ask as that user'
