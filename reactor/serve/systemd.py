"""Running under systemd: socket activation, readiness and status, and the watchdog.

This module implements the protocols of sd_listen_fds(3) and sd_notify(3) without libsystemd: environment variables,
inherited descriptors from number 3 on, and datagrams of `NAME=value` lines.

Inherited sockets can be taken only once, and child processes do not inherit them. A notification does not raise when it
cannot be sent, and does nothing if there is no service manager.
"""

from __future__ import annotations

import os
import socket
import time

from ..errors import ReactorError
from ..facade import Reactor
from ..loop.log import log
from ..loop.timers import Timer

__all__ = ['inherited_sockets', 'notify', 'ready', 'reloading', 'status', 'stopping', 'watchdog']

FIRST = 3  # the first inherited descriptor, after standard input, output and error
LISTEN = ('LISTEN_FDS', 'LISTEN_PID', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID')
# Environment variables that children must not inherit.
VARIABLES = (*LISTEN, 'NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')
LONGEST_VALUE = 500  # characters; systemd ignores messages of more than 4,096 bytes, even if they contain READY=1
PATIENCE = 1.0  # seconds to wait for a busy service manager; this blocks the loop
CONTROL = dict.fromkeys((*range(32), 127), ' ')  # a line break in a value would begin another assignment


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """Take the sockets of systemd's socket activation.

    Pass listening stream sockets to `r.listen_tcp(None, 0, ..., sock=)` and bound datagram sockets to
    `r.bind_udp(None, 0, ..., sock=)`. The caller owns the sockets, and child processes do not inherit them. The
    environment variables that announced them are removed from `os.environ`, so a second call finds nothing.

    Returns:
        A list of (name, socket), in the order in which the .socket unit lists them; empty if no sockets were passed.
        The name is the value of `FileDescriptorName=` in that unit, by default the name of the unit. It is 'unknown'
        if the service manager passed no names.

    Raises:
        ReactorError: A descriptor is not such a socket, but a connection (`Accept=yes`), for example. None of the
            descriptors are changed.
    """
    count, pid, names, _ = (os.environ.pop(name, None) for name in LISTEN)
    if count is None or pid is None:
        return []
    if pid != str(os.getpid()):
        log(
            'warning',
            'sockets were passed to process %s, but this is %s; start this program with exec',
            pid,
            os.getpid(),
        )
        return []
    if not count.isdecimal():
        raise ReactorError(
            f'LISTEN_FDS={count!r} is not a number of descriptors; unset it, or fix the program that sets it'
        )
    numbers = range(FIRST, FIRST + int(count))
    called = ['unknown'] * len(numbers) if names is None else names.split(':')
    if len(called) != len(numbers):
        raise ReactorError(f'{count} descriptors were passed with the names {names!r}; give each of them one name')
    taken: list[tuple[str, socket.socket]] = []
    try:
        for number, name in zip(numbers, called, strict=True):
            taken.append((name, _socket(number, name)))
    except ReactorError:
        for _, sock in taken:
            sock.detach()
        raise
    return taken


def _socket(number: int, name: str) -> socket.socket:
    what = f'descriptor {number} ({name}) from the service manager'
    try:
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
    except OSError as exc:
        raise ReactorError(f'{what} is not a socket: {exc.strerror}; pass only sockets') from None
    if sock.type == socket.SOCK_DGRAM:
        return sock
    listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listening:
        kind = 'connection' if sock.type == socket.SOCK_STREAM else f'socket of type {sock.type!r}'
        sock.detach()
        advice = 'use ListenStream= or ListenDatagram=, with Accept=no (without --accept)'
        raise ReactorError(f'{what} is a {kind}, neither a listening stream nor a datagram socket; {advice}')
    return sock


def notify(**fields: object) -> bool:
    """Send a message to the service manager, with a line `NAME=value` for each keyword, as in `notify(MAINPID=1234)`.

    Args:
        **fields: See sd_notify(3) for the names. Control characters in a value become spaces, and a value is cut after
            500 characters.

    Returns:
        Whether the message was sent; it may not have been read yet. False if there is no service manager
        (`NOTIFY_SOCKET` is not set), or if it cannot be reached; the latter is logged at DEBUG.

    Raises:
        ValueError: A name is not valid.
    """
    for name in fields:
        if not (name.isidentifier() and name.isascii() and name.isupper()):
            raise ValueError(f'{name!r} is not a valid name for sd_notify: use upper case, as in READY or X_QUEUE')
    where = os.environ.get('NOTIFY_SOCKET')
    if not where:
        return False
    return _send(where, fields, PATIENCE)


def _send(where: str, fields: dict[str, object], patience: float) -> bool:
    lines = [f'{name}={str(value).translate(CONTROL)[:LONGEST_VALUE]}' for name, value in fields.items()]
    try:
        if where[0] not in '/@' or not hasattr(socket, 'AF_UNIX'):
            raise OSError('only Unix sockets are supported')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patience)
            sock.connect('\0' + where[1:] if where[0] == '@' else where)
            sock.send('\n'.join(lines).encode(errors='replace'))
    except OSError as exc:
        log('debug', 'cannot notify the service manager at %s of %s: %s', where, lines, exc)
        return False
    return True


def ready(text: str | None = None) -> bool:
    """Report that startup or a reload has finished. With `Type=notify`, systemd waits for this message.

    Args:
        text: A status to send in the same message, see `status`.

    Returns:
        Whether the message was sent, as for `notify`.
    """
    return notify(READY=1) if text is None else notify(READY=1, STATUS=text)


def reloading() -> bool:
    """Report that a reload has begun, with the time stamp that `Type=notify-reload` needs. Call `ready` afterwards."""
    return notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def stopping() -> bool:
    """Report that the program is shutting down."""
    return notify(STOPPING=1)


def status(text: str) -> bool:
    """Set the status line that `systemctl status` shows."""
    return notify(STATUS=text)


def watchdog(r: Reactor) -> Timer | None:
    """Send the keep-alive messages that `WatchdogSec=` requires, from a timer with half that interval.

    The messages are sent from the loop, so systemd restarts the program if a callback blocks the loop.

    Args:
        r: The reactor that runs the timer.

    Returns:
        The timer, which does not keep `run` running. If you cancel it, systemd will consider the program hung. None if
        the service manager does not expect keep-alive messages.
    """
    interval, pid = os.environ.get('WATCHDOG_USEC', ''), os.environ.get('WATCHDOG_PID')
    if (pid is not None and pid != str(os.getpid())) or not interval.isdecimal() or not int(interval):
        return None
    timer = r.call_every(int(interval) / 2_000_000, _beat)
    timer.unref()
    return timer


def _beat() -> None:
    # A beat does not wait for a busy service manager, so that a full queue does not block the loop at each beat.
    where = os.environ.get('NOTIFY_SOCKET')
    if where:
        _send(where, {'WATCHDOG': 1}, 0.0)
