"""What connections start with: limits, times, and callbacks.

Owns the defaults and their checks. The rule: one `Options` is shared by all connections of a listener and is never
changed; who wants another value for one connection gives it a changed copy. That keeps a connection small. Beside the
values lies what the connections of a listener share otherwise, a `Shared`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..loop.checks import seconds, shown, switch, time_limit, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict

    from ..callbacks import OnClose, OnConnect, OnData, OnDrain, OnEof, OnError
    from ..hints import SSLContext

# A recv of 64 KiB for 100 bytes costs what one of 4 KiB costs; from 128 KiB on malloc maps pages for every call.
READ_SIZE = 65536
HIGH_WATER = 65536  # bytes waiting; asyncio's and libuv's users know these two
LOW_WATER = 16384
MAX_BUFFERED = 16 << 20  # bytes waiting; waitress draws the line at the same place
HANDSHAKE_TIMEOUT = 60.0  # seconds, as in asyncio
MAX_EMPTY_RECORDS = 32  # of TLS in a row: as BoringSSL; a client is sent two tickets, and new keys come with data
LINGER = 30.0  # seconds that `close` may take, as long as a TLS shutdown in asyncio
MOST_READ_SIZE = 1 << 30  # bytes: Windows takes a C int, and so much memory is allocated for each call
MOST_KEEPALIVE = 32767, 32767, 127  # seconds, seconds, probes: what Linux takes; elsewhere it is as much or more


# Options of other methods, and why these have none.
OF_SOCKETS = ('ssl', 'server_hostname', 'handshake_timeout', 'nodelay', 'keepalive')
SIDE = 'which side it is would be a guess; call start_tls() on what it returns'
UNFIT = {
    ('adopt', 'ssl'): SIDE,
    ('adopt', 'server_hostname'): SIDE,
    ('listen_tcp', 'server_hostname'): 'it is for the side that connects',
    ('listen_unix', 'server_hostname'): 'it is for the side that connects',
    **{
        ('spawn', name): 'pipes have no such option'
        for name in ('ssl', 'server_hostname', 'handshake_timeout', 'nodelay', 'keepalive')
    },
}
DERIVED = ('shared', 'timed')  # what is no argument
LOG_INTERVAL = 1.0  # seconds between two lines in the log about what a peer can cause at will


class Shared:
    """What the connections of a listener may do together, whichever options one of them has."""

    __slots__ = ('handshakes', 'logged_at', 'refusal_logged_at', 'waiting')

    def __init__(self) -> None:
        # The turn of the last steps of TLS handshakes, and how many there were in it.
        self.handshakes: tuple[int, int] = (0, 0)
        self.waiting: OrderedDict[Any, None] | None = None  # streams with a handshake whose step comes later
        self.logged_at: float = -LOG_INTERVAL  # when an exception of their callbacks was logged last
        self.refusal_logged_at: float = -LOG_INTERVAL  # when it was logged last that one is no connection

    def may_log(self, now: float) -> bool:
        """Whether an exception of theirs may be logged, which is so once in LOG_INTERVAL."""
        if now - self.logged_at < LOG_INTERVAL:
            return False
        self.logged_at = now
        return True

    def may_log_refusal(self, now: float) -> bool:
        """The same for those who do not become connections: no attack may hide an exception."""
        if now - self.refusal_logged_at < LOG_INTERVAL:
            return False
        self.refusal_logged_at = now
        return True


class Options:
    """The limits of a connection, checked; `StreamOptions` explains them.

    ssl, server_hostname  the `ssl.SSLContext` of a TLS stream, and the name that the server must prove to have

    `timed` tells whether a connection with these has to be looked at from time to time.
    """

    __slots__ = (
        'handshake_timeout',
        'high_water',
        'idle_timeout',
        'keepalive',
        'linger',
        'low_water',
        'max_buffered',
        'max_empty_records',
        'nodelay',
        'read_size',
        'read_timeout',
        'server_hostname',
        'shared',
        'ssl',
        'timed',
        'write_timeout',
    )

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
            raise ValueError(f'the marks must be 0 <= low_water <= high_water, not {marks}')
        self.read_size: int = whole('read_size', read_size, 1, MOST_READ_SIZE)
        # 0: as soon as anything waits; a write of nothing never has to be drained.
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
        """A copy with other values."""
        now = {name: getattr(self, name) for name in self.__slots__ if name not in DERIVED}
        copy = Options(**{**now, **changes})
        copy.shared = self.shared
        return copy


def stream_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Options` among the options of a method; TLS has arguments of its own."""
    return {name: value for name, value in options.items() if name in LIMITS}


def check_names(method: Any, given: Iterable[str], options: Any) -> None:
    """Raise TypeError for an option that a method does not have, with the nearest one that it has.

    options  the TypedDict of the options that the method does not name itself
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
    """How many letters have to be inserted, deleted or replaced to make one word of another."""
    row = list(range(len(other) + 1))
    for count, letter in enumerate(one, 1):
        above, row = row, [count]
        for index, wanted in enumerate(other):
            row.append(min(above[index] + (letter != wanted), above[index + 1] + 1, row[index] + 1))
    return row[-1]


def check_limit(name: str, value: float | None) -> float | None:
    """Check a time limit, or None for no limit; TypeError or ValueError."""
    return None if value is None else time_limit(name, value, '; None means no limit')


def check_keepalive(value: float | tuple[float, float, int] | None) -> float | tuple[float, float, int] | None:
    """Check it here, because setting it must not fail: the peer may be gone by then. TypeError, ValueError."""
    if value is None or value is False or (isinstance(value, int | float) and value == 0):
        return None
    values = value if isinstance(value, tuple) else (value,)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            raise TypeError(f'keepalive is None, seconds, or a tuple (idle, interval, count), not {shown(value)}')
    if not 1 <= len(values) <= 3 or not all(0 < one <= most for one, most in zip(values, MOST_KEEPALIVE, strict=False)):
        raise ValueError(
            f'keepalive is (idle, interval, count) above 0 and at most {MOST_KEEPALIVE}, not {shown(value)}'
        )
    return value


def check_server_hostname(value: str | None, ssl: object) -> None:
    """Check the name that a server has to prove to have, or None; TypeError, and ValueError without TLS."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f'server_hostname is a str or None, not {shown(value)}')
    if not ssl:
        raise ValueError(
            f'server_hostname={shown(value)} without ssl= would send everything in plain text: give ssl=True or a '
            'context, or leave both out'
        )
    try:
        valid = bool(value.encode('idna')) and not value.startswith('.') and '\0' not in value
    except UnicodeError:  # a label that is empty or too long
        valid = False
    if value and not valid:
        raise ValueError(f'server_hostname is the name of a host or an address, not {shown(value)}')


# The arguments of `Options` that methods take as they are.
LIMITS = frozenset(Options.__slots__) - {*DERIVED, 'ssl', 'server_hostname'}


class Callbacks:
    """The six callbacks of a connection, checked once and copied to each."""

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
            check_callback(name, getattr(self, name))


def check_callback(name: str, fn: object) -> None:
    """TypeError unless `fn` is callable or None."""
    if fn is not None and not callable(fn):
        raise TypeError(f'{name} must be callable or None, not {shown(fn)}')
