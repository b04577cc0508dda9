"""Under systemd: the sockets that it listens on for us, and what we tell it of our state.

Owns the two protocols between a service manager and its services, as sd_listen_fds(3) and sd_notify(3) describe them:
environment variables, descriptors from 3 on, and datagrams of `NAME=value` lines. Needs no libsystemd. Knows no worker
and no server. The rules: what the manager gave is taken once, and children do not see it; telling the manager never
fails its caller, and without a manager does nothing.
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

FIRST = 3  # the number of the first inherited descriptor: 0, 1 and 2 are those of every process
LISTEN = ('LISTEN_FDS', 'LISTEN_PID', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID')
# What is meant for this process and not for those that it starts.
VARIABLES = (*LISTEN, 'NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')
LONGEST_VALUE = 500  # characters: a message of more than 4,096 bytes is ignored as a whole, READY=1 in it too
PATIENCE = 1.0  # seconds for a manager that is busy; the loop stands still meanwhile
CONTROL = dict.fromkeys((*range(32), 127), ' ')  # a line break in a value would begin another assignment


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """The sockets of socket activation as (name, socket), in the order of the unit; none when we were not given any.

    The name is that of `FileDescriptorName=` in the .socket unit, by default the unit's, and 'unknown' where nobody
    told. Listening stream sockets are for `r.listen_tcp(None, 0, ..., sock=)`, bound datagram sockets for
    `r.bind_udp(None, 0, ..., sock=)`. They are the caller's from now on, no child inherits them, and the variables that
    announced them are gone from `os.environ`: a second call finds nothing.

    Raises ReactorError for anything else that was passed, connections of `Accept=yes` among it, and leaves it alone.
    """
    count, pid, names, _ = (os.environ.pop(name, None) for name in LISTEN)
    if count is None or pid is None:
        return []
    if pid != str(os.getpid()):
        log('warning', 'sockets were passed to process %s, this is %s: not taken; start it with exec', pid, os.getpid())
        return []
    if not count.isdecimal():
        raise ReactorError(f'LISTEN_FDS={count!r} is no number of descriptors; whoever started this has to mend it')
    numbers = range(FIRST, FIRST + int(count))
    called = ['unknown'] * len(numbers) if names is None else names.split(':')
    if len(called) != len(numbers):
        raise ReactorError(f'{count} descriptors were passed with the names {names!r}; give each one name')
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
        raise ReactorError(f'{what} is no socket: {exc.strerror}; pass sockets alone') from None
    if sock.type == socket.SOCK_DGRAM:
        return sock
    listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listening:
        kind = 'connection' if sock.type == socket.SOCK_STREAM else f'socket of the kind {sock.type!r}'
        sock.detach()
        advice = 'use ListenStream= or ListenDatagram=, with Accept=no (without --accept)'
        raise ReactorError(f'{what} is a {kind}, neither a listening stream nor a datagram socket; {advice}')
    return sock


def notify(**fields: object) -> bool:
    """Tell the service manager `NAME=value` for each keyword in one message; sd_notify(3) has the names it knows.

    `notify(MAINPID=1234)`, for example. Control characters in a value become spaces, and a long value is cut. True when
    the message was sent, which is not yet when it was read. False without a manager (`NOTIFY_SOCKET` is not set), or
    when it cannot be reached, which is logged at DEBUG. ValueError for a name that cannot be one.
    """
    for name in fields:
        if not (name.isidentifier() and name.isascii() and name.isupper()):
            raise ValueError(f'{name!r} is no name for the service manager: they are like READY or X_QUEUE')
    where = os.environ.get('NOTIFY_SOCKET')
    if not where:
        return False
    lines = [f'{name}={str(value).translate(CONTROL)[:LONGEST_VALUE]}' for name, value in fields.items()]
    try:
        if where[0] not in '/@' or not hasattr(socket, 'AF_UNIX'):
            raise OSError('only Unix sockets are known here')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect('\0' + where[1:] if where[0] == '@' else where)
            sock.send('\n'.join(lines).encode(errors='replace'))
    except OSError as exc:
        log('debug', 'the service manager at %s was not told %s: %s', where, lines, exc)
        return False
    return True


def ready(text: str | None = None) -> bool:
    """The start is over, or a reload: `Type=notify` waits for this. `text` is a status to go with it."""
    return notify(READY=1) if text is None else notify(READY=1, STATUS=text)


def reloading() -> bool:
    """A reload begins; `ready` is to follow. With the time, for which `Type=notify-reload` asks."""
    return notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def stopping() -> bool:
    """The end begins; the connections that are left are being finished."""
    return notify(STOPPING=1)


def status(text: str) -> bool:
    """One line for people, which `systemctl status` shows."""
    return notify(STATUS=text)


def watchdog(r: Reactor) -> Timer | None:
    """Beat for `WatchdogSec=` from a timer of `r` at half of that time; None when the manager does not ask us to.

    It beats from the loop itself, so that a loop that hangs in a callback is noticed and started anew. The timer does
    not keep the loop running; cancel it to be taken for hung.
    """
    interval, pid = os.environ.get('WATCHDOG_USEC', ''), os.environ.get('WATCHDOG_PID')
    if (pid is not None and pid != str(os.getpid())) or not interval.isdecimal() or not int(interval):
        return None
    timer = r.call_every(int(interval) / 2_000_000, _beat)
    timer.unref()
    return timer


def _beat() -> None:
    notify(WATCHDOG=1)
