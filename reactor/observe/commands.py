"""What can be asked on a control socket, and how it is answered: a line in, a line out, both JSON.

Owns the commands and the check of their arguments. Knows no socket. The rules: what is not understood is answered with
an error that says what would be; nothing is guessed, and no argument ignored; and an answer has a bound, whatever is
open: what was left out of it is told.

A request is an object, `{"do": "handles", "limit": 10}`, or a bare command, `handles`. Each answer has 'ok'; if it is
false, 'error' says why.
"""

from __future__ import annotations

import json
from collections import Counter

from .. import Reactor, __version__
from ..loop.counters import TIMES
from ..loop.log import describe, log
from .counters import combined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .counters import Snapshot, Source

LIMIT = 100  # handles and reasons that are told unless more are asked for
MOST = 1000  # of them, in one answer
LONGEST_TEXT = 500  # characters to describe one of them
DRAIN_TIMEOUT, LAME_DUCK = 30.0, 0.0  # seconds, unless a drain says otherwise


class CommandError(Exception):
    """A request that is answered with an error, and with nothing else."""


class Commands:
    """The commands for one reactor, or for the workers behind a source."""

    def __init__(self, r: Reactor, source: Source, drain: Callable[[float, float], object]) -> None:
        self._r = r
        self._source = source
        self._drain = drain

    def answer(self, line: bytes) -> bytes:
        """The line that answers `line`, with its end. Never raises."""
        try:
            name, arguments = _parse(line)
            told = getattr(self, f'do_{name}')(**_checked(name, arguments))
            return json.dumps({'ok': True, **told}).encode() + b'\n'
        except CommandError as exc:
            return refusal(str(exc))
        except Exception as exc:  # of the source or of a handle: it is not to hurt who is looked at
            log('error', 'exception in a command of the control socket', exc=exc)
            return refusal(f'{type(exc).__name__}: {describe(exc)}; the log has the rest')

    def do_help(self) -> dict[str, Any]:
        """What can be asked."""
        return {
            'commands': {
                name: {'what': what, 'arguments': {key: about for key, (_, about) in arguments.items()}}
                for name, (what, arguments) in COMMANDS.items()
            }
        }

    def do_stats(self) -> dict[str, Any]:
        """Counters: of each in the source, and of all together."""
        workers = self._source()
        return {
            'version': __version__,
            'clock': self._r.kernel.clock(),
            'draining': self._r.draining,
            'workers': workers,
            'sum': combined(workers.values()),
        }

    def do_phases(self) -> dict[str, Any]:
        """Where the time of the turns went; of two answers the difference is what happened between."""
        told = self.do_stats()
        return {
            'clock': told['clock'],
            'workers': {name: _phases(counters) for name, counters in told['workers'].items()},
            'sum': _phases(told['sum']),
        }

    def do_handles(self, kind: str = '', limit: int = LIMIT) -> dict[str, Any]:
        """Handles: how many of each kind, and some of them in words."""
        handles = self._r.handles()
        kinds = Counter(type(handle).__name__ for handle in handles)
        if kind:
            handles = [handle for handle in handles if type(handle).__name__ == kind]
        now = self._r.kernel.clock()
        shown = [
            {
                'handle': describe(handle)[:LONGEST_TEXT],
                'seconds': round(now - handle.since, 1),
                'waits_for': handle.waits_for()[:LONGEST_TEXT],
                'keeps_running': self._r.watchers.is_referenced(handle),
            }
            for handle in handles[:limit]
        ]
        return {'kinds': kinds, 'handles': shown, 'left_out': len(handles) - len(shown)}

    def do_why_alive(self, limit: int = LIMIT) -> dict[str, Any]:
        """The reasons of `Reactor.why_alive`."""
        reasons = [reason[:LONGEST_TEXT] for reason in self._r.why_alive(limit + 1)]
        return {'reasons': reasons[:limit], 'more': len(reasons) > limit}

    def do_drain(self, drain_timeout: float = DRAIN_TIMEOUT, lame_duck: float = LAME_DUCK) -> dict[str, Any]:
        """Begin `Reactor.drain`, or what stands for it."""
        if lame_duck > drain_timeout:
            raise CommandError(
                f'lame_duck is a part of drain_timeout: {lame_duck:g} s do not fit into {drain_timeout:g} s'
            )
        self._drain(drain_timeout, lame_duck)
        return {'drain_timeout': drain_timeout, 'lame_duck': lame_duck}


def _phases(counters: Snapshot) -> dict[str, Any]:
    seconds = {name.removesuffix('_time'): counters[name] for name in TIMES}
    return {'seconds': seconds, **{name: counters[name] for name in ('loop_count', 'timer_lag', 'timer_lag_sum')}}


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


HOW_MANY = _whole, f'how many to tell, 1 to {MOST}, by default {LIMIT}'
# By the name of a command: what it tells or does, and its arguments, how each is checked, and what it is.
COMMANDS: dict[str, tuple[str, dict[str, tuple[Callable[[Any], Any], str]]]] = {
    'help': ('the commands and their arguments', {}),
    'stats': ('the counters of each reactor, and of all together', {}),
    'phases': ('the seconds spent in each phase of the turn, and how late timers fired', {}),
    'handles': (
        'what is open in the process that is asked',
        {'kind': (_word, 'only those of this kind, such as Stream'), 'limit': HOW_MANY},
    ),
    'why_alive': ('why the process that is asked goes on running', {'limit': HOW_MANY}),
    'drain': (
        'end without losing a request',
        {
            'drain_timeout': (_seconds, f'seconds until what is left is reset, by default {DRAIN_TIMEOUT:g}'),
            'lame_duck': (_seconds, f'seconds of these in which it goes on accepting, by default {LAME_DUCK:g}'),
        },
    ),
}


def refusal(why: str) -> bytes:
    """The line that answers what cannot be answered otherwise."""
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
        raise CommandError(f'no such command; there are {", ".join(COMMANDS)}')
    return name, arguments


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _checked(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    _, known = COMMANDS[name]
    checked = {}
    for key, value in arguments.items():
        if key not in known:
            raise CommandError(f'{name} has {"the arguments " + ", ".join(known) if known else "no arguments"}')
        check, what = known[key]
        try:
            checked[key] = check(value)
        except ValueError:
            raise CommandError(f'{key} is {what}') from None
    return checked
