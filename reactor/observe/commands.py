"""The commands of a control socket: each request is one line, and so is each answer.

A request is a JSON object such as `{"do": "handles", "limit": 10}`, or just the name of a command, such as `handles`.
An answer is a JSON object with the key 'ok'. If its value is false, 'error' says what is wrong and what is valid.

Unknown commands and arguments are errors; nothing is guessed or ignored. The size of an answer is bounded, however many
handles are open: a truncated list says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from .. import Reactor, __version__
from ..loop.checks import shown
from ..loop.counters import TIMES
from ..loop.log import describe, log
from .counters import Snapshot, Source, combined, health_of

LIMIT = 100  # number of handles or reasons in an answer, by default
MOST = 1000  # the largest `limit`
LONGEST_TEXT = 500  # characters for each handle or reason; longer texts are cut
DRAIN_TIMEOUT, LAME_DUCK = 30.0, 0.0  # seconds, by default


class CommandError(Exception):
    """Raised for an invalid request; its text is sent as the answer."""


class Commands:
    """The commands, for one reactor or for the parent of workers."""

    def __init__(self, r: Reactor, source: Source, drain: Callable[[float, float], object]) -> None:
        self._r = r
        self._source = source
        self._drain = drain

    def answer(self, line: bytes) -> bytes:
        """Return the answer to the request `line`, with its newline. Never raises."""
        try:
            name, arguments = _parse(line)
            answer = getattr(self, f'do_{name}')(**_checked(name, arguments))
            return json.dumps({'ok': True, **answer}).encode() + b'\n'
        except CommandError as exc:
            return refusal(str(exc))
        except Exception as exc:  # raised by the source or a handle; it must not harm the program
            log('error', 'exception in a command of the control socket', exc=exc)
            return refusal(f'{type(exc).__name__}: {describe(exc)}; see the log for the traceback')

    def do_help(self) -> dict[str, Any]:
        """List the commands and their arguments."""
        return {
            'commands': {
                name: {'what': what, 'arguments': {key: about for key, (_, about) in arguments.items()}}
                for name, (what, arguments) in COMMANDS.items()
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
        stats = self.do_stats()
        return {
            'clock': stats['clock'],
            'workers': {name: _phases(counters) for name, counters in stats['workers'].items()},
            'sum': _phases(stats['sum']),
        }

    def do_handles(self, kind: str = '', limit: int = LIMIT) -> dict[str, Any]:
        """Count the open handles by kind, and describe up to `limit` of them."""
        handles = self._r.handles()
        kinds = Counter(type(handle).__name__ for handle in handles)
        if kind:
            handles = [handle for handle in handles if type(handle).__name__ == kind]
        now = self._r.kernel.clock()
        listed = [
            {
                'handle': describe(handle)[:LONGEST_TEXT],
                'seconds': round(now - handle.since, 1),
                'waits_for': handle.waits_for()[:LONGEST_TEXT],
                'keeps_running': self._r.watchers.is_referenced(handle),
            }
            for handle in handles[:limit]
        ]
        return {'kinds': kinds, 'handles': listed, 'left_out': len(handles) - len(listed)}

    def do_why_alive(self, limit: int = LIMIT) -> dict[str, Any]:
        """Return the reasons that `Reactor.why_alive` lists."""
        reasons = [reason[:LONGEST_TEXT] for reason in self._r.why_alive(limit + 1)]
        return {'reasons': reasons[:limit], 'more': len(reasons) > limit}

    def do_drain(self, drain_timeout: float = DRAIN_TIMEOUT, lame_duck: float = LAME_DUCK) -> dict[str, Any]:
        """Call `Reactor.drain`, or the `drain` that was passed to `serve_control`."""
        if lame_duck > drain_timeout:
            raise CommandError(
                f'lame_duck cannot be longer than drain_timeout: {lame_duck:g} s is longer than {drain_timeout:g} s'
            )
        self._drain(drain_timeout, lame_duck)
        return {'drain_timeout': drain_timeout, 'lame_duck': lame_duck}


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


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


HOW_MANY = _whole, f'the number of entries to list, 1 to {MOST} (default {LIMIT})'
# Maps each command to its help text and its arguments. An argument has a function that checks it, and a help text.
COMMANDS: dict[str, tuple[str, dict[str, tuple[Callable[[Any], Any], str]]]] = {
    'help': ('the commands and their arguments', {}),
    'stats': ('the counters of each reactor and their sum', {}),
    'phases': ('the seconds spent in each phase of the turn, and how late timers fired', {}),
    'handles': (
        'the open handles of the process that owns the socket',
        {'kind': (_word, 'the class of the handles to list, such as Stream'), 'limit': HOW_MANY},
    ),
    'why_alive': ('why the process that owns the socket is still running', {'limit': HOW_MANY}),
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


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    text = line.decode('utf-8', 'replace').strip()
    if text.startswith('{'):
        try:
            arguments = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise CommandError('this is not JSON; a request is one line such as {"do": "stats"}') from None
        name = arguments.pop('do', None)
    else:
        name, arguments = text, {}
    if not isinstance(name, str) or name not in COMMANDS:
        raise CommandError(f'unknown command; the commands are {", ".join(COMMANDS)}')
    return name, arguments


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _checked(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    _, known = COMMANDS[name]
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
