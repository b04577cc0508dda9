"""The options and callbacks that connections start with: their defaults, and the checks of the values that users pass.

`net/endpoints.py` builds listeners and connections from these options.

All connections of a listener share one `Options`, which keeps a connection small. An `Options` is never changed: a
connection that needs other values gets a changed copy. `Shared` holds other state that the connections of a listener
share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..hints import SSLContext
from ..loop.checks import callback, seconds, shown, switch, time_limit, whole

if TYPE_CHECKING:
    from ..callbacks import OnClose, OnConnect, OnData, OnDrain, OnEof, OnError

# Receiving 100 bytes costs no more with a size of 64 KiB than with 4 KiB. From 128 KiB on, malloc maps pages for every
# call.
READ_SIZE = 65536
HIGH_WATER = 65536  # buffered bytes; this and LOW_WATER are asyncio's defaults
LOW_WATER = 16384
MAX_BUFFERED = 16 << 20  # buffered bytes, the same limit as in waitress
HANDSHAKE_TIMEOUT = 60.0  # seconds, as in asyncio
# TLS records without data in a row; the same limit as in BoringSSL. Honest peers stay far below it: a server sends only
# two session tickets in a row, and a KeyUpdate is followed by data.
MAX_EMPTY_RECORDS = 32
LINGER = 30.0  # seconds that `close` may take; asyncio allows the same for a TLS shutdown
MOST_READ_SIZE = 1 << 30  # bytes: Windows takes a C int, and each call allocates this much memory
MOST_KEEPALIVE = 32767, 32767, 127  # seconds, seconds, probes: the limits of Linux; other systems allow as much or more


# Options that a method lacks although other methods have them. The values say why, and are shown in error messages.
OF_SOCKETS = ('ssl', 'server_hostname', 'handshake_timeout', 'nodelay', 'keepalive')
SIDE = 'it cannot know which side of TLS to take; call start_tls() on the connection that it returns'
UNFIT = {
    ('adopt', 'ssl'): SIDE,
    ('adopt', 'server_hostname'): SIDE,
    ('listen_tcp', 'server_hostname'): 'it is for the side that connects',
    ('listen_unix', 'server_hostname'): 'it is for the side that connects',
    **{('spawn', name): 'pipes have no such option' for name in OF_SOCKETS},
}
DERIVED = ('shared', 'timed')  # attributes that are not arguments
LOG_INTERVAL = 1.0  # seconds between two log lines about events that a peer can cause at will


class Shared:
    """State that the connections of a listener share, even if the options of some have been changed."""

    __slots__ = ('handshakes', 'logged_at', 'refusal_logged_at', 'waiting')

    of_listener: bool = False

    def __init__(self) -> None:
        # The last turn in which TLS handshakes took steps, and the number of these steps.
        self.handshakes: tuple[int, int] = (0, 0)
        self.waiting: OrderedDict[Any, None] | None = None  # streams waiting for their next handshake step
        self.logged_at: float = -LOG_INTERVAL  # when an exception in a callback was last logged
        self.refusal_logged_at: float = -LOG_INTERVAL  # when a refused client was last logged

    def may_log(self, now: float) -> bool:
        """Return whether an exception in a callback may be logged now: at most once per LOG_INTERVAL."""
        if now - self.logged_at < LOG_INTERVAL:
            return False
        self.logged_at = now
        return True

    def may_log_refusal(self, now: float) -> bool:
        """Return whether a refusal may be logged now. This limit is separate, so an attack cannot hide an exception."""
        if now - self.refusal_logged_at < LOG_INTERVAL:
            return False
        self.refusal_logged_at = now
        return True


class ListenerShared(Shared):
    """The `Shared` of a listener: all its connections together may log one exception in LOG_INTERVAL."""

    __slots__ = ()

    of_listener: bool = True


class Options:
    """The checked options of a connection; `StreamOptions` in `callbacks.py` explains them.

    Attributes:
        ssl: The `ssl.SSLContext` of a TLS stream.
        server_hostname: The name that the server's certificate must have.
        timed: Whether any of the time limits is set, so that the connection has to be checked from time to time.
        shared: State that all connections of the listener share.
    """

    __slots__ = (  # noqa: RUF023  (grouped by purpose)
        # reading and writing
        'read_size', 'high_water', 'low_water', 'max_buffered',
        # time limits
        'linger', 'read_timeout', 'write_timeout', 'idle_timeout', 'timed',
        # the socket
        'nodelay', 'keepalive',
        # TLS
        'ssl', 'server_hostname', 'handshake_timeout', 'max_empty_records',
        # shared by the connections of a listener
        'shared',
    )  # fmt: skip

    def __init__(
        self,
        *,
        read_size: int = READ_SIZE,
        high_water: int = HIGH_WATER,
        low_water: int | None = None,
        max_buffered: int = MAX_BUFFERED,
        linger: float = LINGER,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        idle_timeout: float | None = None,
        nodelay: bool = True,
        keepalive: float | tuple[float, float, int] | None = None,
        ssl: SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        max_empty_records: int | None = MAX_EMPTY_RECORDS,
    ) -> None:
        high_water = whole('high_water', high_water, 0)
        low_water = min(LOW_WATER, high_water // 4) if low_water is None else whole('low_water', low_water, 0)
        if low_water > high_water:
            marks = f'{shown(low_water)} and {shown(high_water)}'
            raise ValueError(f'low_water and high_water must be 0 <= low_water <= high_water, not {marks}')
        self.read_size: int = whole('read_size', read_size, 1, MOST_READ_SIZE)
        # 0 counts as 1: `write` then returns False if any byte is waiting to be sent, and True if none is.
        self.high_water: int = max(1, high_water)
        self.low_water: int = low_water
        self.max_buffered: int = whole('max_buffered', max_buffered, 1)
        if max_empty_records is not None:
            max_empty_records = whole('max_empty_records', max_empty_records, 0, unit='number of TLS records')
        self.max_empty_records: int | None = max_empty_records
        self.linger: float = seconds('linger', linger)
        self.read_timeout: float | None = check_limit('read_timeout', read_timeout)
        self.write_timeout: float | None = check_limit('write_timeout', write_timeout)
        self.idle_timeout: float | None = check_limit('idle_timeout', idle_timeout)
        self.timed: bool = (self.read_timeout or self.write_timeout or self.idle_timeout) is not None
        self.nodelay: bool = switch('nodelay', nodelay)
        self.keepalive: float | tuple[float, float, int] | None = check_keepalive(keepalive)
        self.ssl: SSLContext | None = ssl
        self.server_hostname: str | None = server_hostname
        self.handshake_timeout: float = time_limit('handshake_timeout', handshake_timeout)
        self.shared: Shared = Shared()

    def changed(self, **changes: Any) -> Options:
        """Return a copy in which these values are changed."""
        now = {name: getattr(self, name) for name in self.__slots__ if name not in DERIVED}
        copy = Options(**{**now, **changes})
        copy.shared = self.shared
        return copy


def stream_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options that are also arguments of `Options`, except `ssl` and `server_hostname`."""
    return {name: value for name, value in options.items() if name in LIMITS}


def check_names(method: Any, given: Iterable[str], options: Any) -> None:
    """Raise TypeError for an option that a method does not have; the message suggests the nearest name.

    `options` is the TypedDict of the options that are not in the signature of the method.
    """
    for name in given:
        if name not in options.__optional_keys__:
            raise TypeError(f'{method.__name__}() has no option {shown(name)}{_advice(method, name, options)}')


def _advice(method: Any, name: str, options: Any) -> str:
    why = UNFIT.get((method.__name__, name))
    if why is not None:
        return f': {why}'
    known = {*options.__optional_keys__, *method.__annotations__} - {'options', 'return'}
    distance, nearest = min((edits(name, one), one) for one in known)
    close = distance <= len(name) // 2
    return f'; did you mean {nearest!r}?' if close else f'; it has {", ".join(sorted(known))}'


def edits(one: str, other: str) -> int:
    """Return how many letters must be inserted, deleted or replaced to turn one word into the other."""
    row = list(range(len(other) + 1))
    for count, letter in enumerate(one, 1):
        above, row = row, [count]
        for index, wanted in enumerate(other):
            row.append(min(above[index] + (letter != wanted), above[index + 1] + 1, row[index] + 1))
    return row[-1]


def check_limit(name: str, value: float | None) -> float | None:
    """Check and return a time limit in seconds, or None for no limit. Raises TypeError or ValueError."""
    return None if value is None else time_limit(name, value, '; None means no limit')


def check_keepalive(value: float | tuple[float, float, int] | None) -> float | tuple[float, float, int] | None:
    """Check and return the option `keepalive`. Raises TypeError or ValueError.

    The kernel cannot check it, because an error of `setsockopt` may also mean that the peer has gone.
    """
    if value is None or value is False or (isinstance(value, int | float) and value == 0):
        return None
    values = value if isinstance(value, tuple) else (value,)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            raise TypeError(f'keepalive must be None, seconds, or a tuple (idle, interval, count), not {shown(value)}')
    if not 1 <= len(values) <= 3 or not all(0 < one <= most for one, most in zip(values, MOST_KEEPALIVE, strict=False)):
        raise ValueError(
            f'keepalive must be (idle, interval, count), above 0 and at most {MOST_KEEPALIVE}, not {shown(value)}'
        )
    return value


def check_server_hostname(value: str | None, ssl: object) -> None:
    """Check the name that the server's certificate must have, or None. Raises TypeError or ValueError."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f'server_hostname must be a str or None, not {shown(value)}')
    if not ssl:
        raise ValueError(
            f'server_hostname={shown(value)} without ssl= would send everything in plain text; pass ssl=True or a '
            'context, or leave both out'
        )
    try:
        valid = bool(value.encode('idna')) and not value.startswith('.') and '\0' not in value
    except UnicodeError:  # a label is empty or too long
        valid = False
    if value and not valid:
        raise ValueError(f'server_hostname must be a host name or an address, not {shown(value)}')


# The arguments of `Options` that methods pass on unchanged.
LIMITS = frozenset(Options.__slots__) - {*DERIVED, 'ssl', 'server_hostname'}


# The arguments of the callbacks of connections.
ARGUMENTS = {
    **dict.fromkeys(('on_connect', 'on_eof', 'on_drain'), '(conn)'),
    **dict.fromkeys(('on_close', 'on_error'), '(conn, exc)'),
    'on_data': '(conn, data)',
}


class Callbacks:
    """The six callbacks of a connection: checked once, then copied to each connection of a listener."""

    __slots__ = ('on_close', 'on_connect', 'on_data', 'on_drain', 'on_eof', 'on_error')

    def __init__(
        self,
        on_data: OnData | None,
        on_connect: OnConnect | None = None,
        on_eof: OnEof | None = None,
        on_drain: OnDrain | None = None,
        on_close: OnClose | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self.on_data: OnData | None = on_data
        self.on_connect: OnConnect | None = on_connect
        self.on_eof: OnEof | None = on_eof
        self.on_drain: OnDrain | None = on_drain
        self.on_close: OnClose | None = on_close
        self.on_error: OnError | None = on_error
        for name in self.__slots__:
            check_callback(name, getattr(self, name), ARGUMENTS[name])


def check_size(name: str, size: int) -> int:
    """Return `size`. Raise TypeError if it is not an int, ValueError if it is negative."""
    if not isinstance(size, int):
        raise TypeError(f'{name} must be a number of bytes, not {size!r}')
    if size < 0:
        raise ValueError(f'{name} must be a number of bytes, at least 0, not {size}')
    return size


def check_callback(name: str, fn: object, arguments: str = '', more: int = 0) -> None:
    """Raise TypeError unless `fn` is None or can be called; see `callback`."""
    if fn is not None:
        if not callable(fn):
            raise TypeError(f'{name} must be callable or None, not {shown(fn)}')
        callback(name, fn, arguments, more)
