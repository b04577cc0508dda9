"""The commands of a control socket: each request is one line, and so is each answer.

A request is a JSON object such as `{"do": "handles", "limit": 10}`, or just the name of a command, such as `handles`.
An answer is a JSON object with the key 'ok'. If its value is false, 'error' says what is wrong and what is valid.

Unknown commands and arguments are errors; nothing is guessed or ignored. The size of an answer is bounded, however many
handles are open: a truncated list says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from .. import Reactor, __version__, inspection
from ..activity import KEYS, activity
from ..inspection import LIMIT
from ..loop.checks import shown
from ..loop.counters import TIMES
from ..loop.log import describe, log
from .counters import Snapshot, Source, combined, health_of
from .recorder import FlightRecorder
from .trace_events import packed

MOST = 1000  # the largest `limit`
DRAIN_TIMEOUT, LAME_DUCK = 30.0, 0.0  # seconds, by default

# Maps each command to its help text and its arguments. An argument has a function that checks it, and a help text.
Arguments = dict[str, tuple[Callable[[Any], Any], str]]
CommandTable = dict[str, tuple[str, Arguments]]


class CommandError(Exception):
    """Raised for an invalid request; its text is sent as the answer."""


class Commands:
    """The commands, for one reactor.

    Attributes:
        known: The commands and their arguments, like `COMMANDS`.
    """

    known: CommandTable

    def __init__(
        self,
        r: Reactor,
        source: Source,
        drain: Callable[[float, float], object],
        recorder: FlightRecorder | None = None,
    ) -> None:
        self._r = r
        self._recorder = recorder
        self._source = source
        self._drain = drain
        self.known = COMMANDS

    def handle(self, line: bytes, reply: Callable[[bytes], object]) -> None:
        """Call `reply(answer)`, now or later, with the answer to the request `line`."""
        if not self.traces(line, reply):
            reply(self.answer(line))

    def traces(self, line: bytes, reply: Callable[[bytes], object]) -> bool:
        """Return whether the request is for a trace. If so, reply when it is made, in a thread: this takes a while."""
        if self._recorder is None:
            return False
        try:
            name, _ = self.parse(line)
        except CommandError:
            return False
        if name != 'trace':
            return False

        def done(text: str | None, exc: BaseException | None) -> None:
            answer = {'ok': True, 'trace': text} if exc is None else {'ok': False, 'error': describe(exc)}
            reply(json.dumps(answer).encode() + b'\n')

        self._r.run_in_thread(packed, self._recorder.recording('asked for'), on_done=done).unref()
        return True

    def answer(self, line: bytes) -> bytes:
        """Return the answer to the request `line`, with its newline. Never raises."""
        return self.attempt(self._do, line)

    def parse(self, line: bytes) -> tuple[str, dict[str, Any]]:
        """Return the name of a command and its arguments. Raises `CommandError`."""
        name, arguments = _parse(line, self.known)
        return name, _checked(name, arguments, self.known[name][1])

    def attempt(self, fn: Callable[..., dict[str, Any]], *args: Any) -> bytes:
        """Return the answer line for what `fn(*args)` returns or raises. Never raises."""
        try:
            return json.dumps({'ok': True, **fn(*args)}).encode() + b'\n'
        except CommandError as exc:
            return refusal(str(exc))
        except Exception as exc:  # raised by the source or a handle; it must not harm the program
            log('error', 'exception in a command of the control socket', exc=exc)
            return refusal(f'{type(exc).__name__}: {describe(exc)}; see the log for the traceback')

    def _do(self, line: bytes) -> dict[str, Any]:
        name, arguments = self.parse(line)
        answer: dict[str, Any] = getattr(self, f'do_{name}')(**arguments)
        return answer

    def do_help(self) -> dict[str, Any]:
        """List the commands and their arguments."""
        return {
            'commands': {
                name: {'what': what, 'arguments': {key: about for key, (_, about) in arguments.items()}}
                for name, (what, arguments) in self.known.items()
            }
        }

    def do_stats(self) -> dict[str, Any]:
        """Return the counters of each reactor and their sum; for workers, also the state of the service."""
        workers = self._source()
        health = health_of(workers)
        return {
            'version': __version__,
            'clock': self._r.kernel.clock(),
            'draining': self._r.draining or (health is not None and health.draining),
            'workers': workers,
            'sum': combined(workers.values()),
            **({} if health is None else {'service': health.as_dict()}),
        }

    def do_phases(self) -> dict[str, Any]:
        """Return the time spent in each phase since the start. Subtract two answers to get the time between them."""
        return phases_of(self.do_stats())

    def do_handles(self, **arguments: Any) -> dict[str, Any]:
        """Count the open handles by kind, and describe up to `limit` of them."""
        return inspection.handles(self._r, **arguments)

    def do_why_alive(self, **arguments: Any) -> dict[str, Any]:
        """Return the reasons that `Reactor.why_alive` lists."""
        return inspection.why_alive(self._r, **arguments)

    def do_top(self, **arguments: Any) -> dict[str, Any]:
        """Return the counters, the busiest connections since the last request, and the oldest ones."""
        return {**phases_of(self.do_stats()), **activity(self._r, **arguments)}

    def do_trace(self) -> dict[str, Any]:
        """Refuse: without a flight recorder, there is no trace."""
        raise CommandError(
            'this process has no flight recorder: pass recorder=observe.FlightRecorder(r) to serve_control'
        )

    def do_drain(self, **times: float) -> dict[str, Any]:
        """Call `Reactor.drain`, or the `drain` that was passed to `serve_control`."""
        drain_timeout, lame_duck = times.get('drain_timeout', DRAIN_TIMEOUT), times.get('lame_duck', LAME_DUCK)
        if lame_duck > drain_timeout:
            raise CommandError(
                f'lame_duck cannot be longer than drain_timeout: {lame_duck:g} s is longer than {drain_timeout:g} s'
            )
        self._drain(drain_timeout, lame_duck)
        return {'drain_timeout': drain_timeout, 'lame_duck': lame_duck}


def phases_of(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the command `phases` that belongs to an answer of `stats`."""
    return {
        'clock': stats['clock'],
        'workers': {name: _phases(counters) for name, counters in stats['workers'].items()},
        'sum': _phases(stats['sum']),
    }


def _phases(counters: Snapshot) -> dict[str, Any]:
    seconds = {name.removesuffix('_time'): counters.get(name, 0.0) for name in TIMES}
    others = {'loop_count': 0, 'timer_lag': [], 'timer_lag_sum': 0.0}
    return {'seconds': seconds, **{name: counters.get(name, empty) for name, empty in others.items()}}


def _whole(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST:
        raise ValueError
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 86400:
        raise ValueError
    return float(value)


def _sort_key(value: Any) -> str:
    if value not in KEYS:
        raise ValueError
    return str(value)


def word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


HOW_MANY = _whole, f'the number of entries to list, 1 to {MOST} (default {LIMIT})'
COMMANDS: CommandTable = {
    'help': ('the commands and their arguments', {}),
    'stats': ('the counters of each reactor and their sum', {}),
    'phases': ('the seconds spent in each phase of the turn, and how late timers fired', {}),
    'handles': (
        'the open handles of the process that owns the socket',
        {'kind': (word, 'the class of the handles to list, such as Stream'), 'limit': HOW_MANY},
    ),
    'why_alive': ('why the process that owns the socket is still running', {'limit': HOW_MANY}),
    'top': (
        'the busiest and the oldest connections',
        {
            'sort': (_sort_key, f'the sort key: {", ".join(KEYS)}'),
            'only': (word, 'text in the address of the connections to list'),
            'limit': HOW_MANY,
        },
    ),
    'trace': ('the last seconds of the flight recorder, for Perfetto or speedscope: trace FILE', {}),
    'drain': (
        'shut down without losing a request',
        {
            'drain_timeout': (
                _seconds,
                f'the seconds until the remaining connections are reset (default {DRAIN_TIMEOUT:g})',
            ),
            'lame_duck': (
                _seconds,
                f'the seconds to keep accepting connections (default {LAME_DUCK:g})',
            ),
        },
    ),
}


def refusal(why: str) -> bytes:
    """Return the answer line for an error."""
    return json.dumps({'ok': False, 'error': why}).encode() + b'\n'


def _parse(line: bytes, known: CommandTable) -> tuple[str, dict[str, Any]]:
    text = line.decode('utf-8', 'replace').strip()
    if text.startswith('{'):
        try:
            arguments = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise CommandError('this is not JSON; a request is one line such as {"do": "stats"}') from None
        name = arguments.pop('do', None)
    else:
        name, arguments = text, {}
    if not isinstance(name, str) or name not in known:
        raise CommandError(f'unknown command; the commands are {", ".join(known)}')
    return name, arguments


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _checked(name: str, arguments: dict[str, Any], known: Arguments) -> dict[str, Any]:
    checked = {}
    for key, value in arguments.items():
        if key not in known:
            valid = f'only {" and ".join(known)}' if known else 'no arguments'
            raise CommandError(f'unknown argument {shown(key)}: {name} takes {valid}')
        check, what = known[key]
        try:
            checked[key] = check(value)
        except ValueError:
            raise CommandError(f'{key} must be {what}, not {shown(value)}') from None
    return checked
