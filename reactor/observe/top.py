"""`python -m reactor.observe SOCKET top`: a live table in the terminal. tokio-console is the model."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from ..activity import KEYS
from .asking import ControlClient
from .counters import utilisation
from .tables import phases, printable

EVERY = 1.0  # seconds between two looks
ALTERNATE, NORMAL = '\x1b[?1049h\x1b[?25l', '\x1b[?25h\x1b[?1049l'  # the second screen of a terminal, without a cursor
HELP = 'q quit   ' + '   '.join(f'{name[0]} {name}' for name in KEYS) + '   / filter'
SORTS = {name[0]: name for name in KEYS}
WIDE = 80  # columns that a table needs


def lines(answer: dict[str, Any], before: dict[str, Any] | None, columns: int = WIDE) -> list[str]:
    """Format an answer of the command `top`, for a terminal of this width."""
    shown = [*_headline(answer, before), '', *phases(answer, before)]
    if 'busiest' in answer:
        parts = [('', answer)]
    else:
        parts = [(f'worker {one["worker"]} ', one) for one in answer.get('connections', ())]
    for name, part in parts:
        if 'error' in part:
            shown += ['', printable(f'{name}{part["error"]}')]
            continue
        interval = max(part['interval'], 1e-9)
        shown += ['', f'{name}{part["active"]:,} connections with callbacks in {interval:.1f} s, the busiest:']
        shown += _connections(part['busiest'], interval)
        shown += [f'{name}the oldest:', *_connections(part['oldest'], interval)]
    return [line[:columns] for line in shown]


def _headline(answer: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Return the utilisation and the turns of each loop since the last look."""
    found = []
    for name, part in answer['workers'].items():
        then = before and before['workers'].get(name)
        seconds = {key: value - (then['seconds'][key] if then else 0.0) for key, value in part['seconds'].items()}
        total = sum(seconds.values())
        busy = utilisation(seconds['idle'], total)
        if busy is not None:
            turns = part['loop_count'] - (then['loop_count'] if then else 0)
            found.append(f'{name}: {busy:.1%} busy, {turns / total:,.0f} turns/s')
    return ['utilisation  ' + '   '.join(found)]


def _connections(rows: list[dict[str, Any]], interval: float) -> list[str]:
    head = f'{"connection":<21} {"busy":>6} {"calls/s":>7} {"in":>6} {"out":>6} {"waits":>6} {"age":>4}  waits for'
    return [head] + [
        f'{printable(one["connection"])[-21:]:<21} {one["busy"] / interval:>6.1%} {one["calls"] / interval:>7,.0f} '
        f'{_size(one["received"]):>6} {_size(one["sent"]):>6} {_size(one["buffered"]):>6} {_age(one["seconds"]):>4}  '
        f'{printable(one["waits_for"])}'
        for one in rows
    ]


def _size(count: int | None) -> str:
    if count is None:
        return ''
    for unit in ('B', 'kB', 'MB', 'GB'):
        if count < 10_000 or unit == 'GB':
            return f'{count:.0f}{unit}'
        count //= 1000
    return ''


def _age(seconds: float) -> str:
    for unit, length in (('s', 100), ('m', 6000), ('h', 360_000)):
        if seconds < length:
            return f'{seconds / {"s": 1, "m": 60, "h": 3600}[unit]:.0f}{unit}'
    return f'{seconds / 86400:.0f}d'


def watch(client: ControlClient, arguments: dict[str, Any]) -> None:
    """Show the table until the user quits. Returns then; raises `NoAnswer` and KeyboardInterrupt."""
    arguments, before, typing = dict(arguments), None, None
    with _screen() as keys:
        while True:
            answer = client.ask('top', **arguments)
            size = shutil.get_terminal_size()
            shown = lines(answer, before, size.columns)
            before = answer
            until = monotonic() + EVERY
            while (left := until - monotonic()) > 0:
                last = HELP if typing is None else f'filter: {typing}'
                _draw([*shown[: size.lines - 2], '', last][: size.lines])
                for key in keys(left):
                    if typing is not None:
                        typing = _typed(typing, key, arguments)
                    elif key == 'q':
                        return
                    elif key in SORTS:
                        arguments['sort'] = SORTS[key]
                        until = 0.0
                    elif key == '/':
                        typing = arguments.get('only', '')


def _typed(typing: str, key: str, arguments: dict[str, Any]) -> str | None:
    """Return what has been typed for the filter after this key, or None when it is complete."""
    if key in '\r\n':
        arguments['only'] = typing
        return None
    if key == '\x1b':
        return None
    return typing[:-1] if key in '\x7f\b' else typing + key if key.isprintable() else typing


def _draw(shown: list[str]) -> None:
    print('\x1b[H' + '\n'.join(f'{line}\x1b[K' for line in shown) + '\x1b[J', end='', flush=True)


@contextmanager
def _screen() -> Iterator[Any]:
    """Use the terminal's second screen; yield a function that returns the keys pressed within some seconds."""
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def keys(seconds: float) -> str:
        ready, _, _ = select.select([number], [], [], seconds)
        return os.read(number, 100).decode('utf-8', 'ignore') if ready else ''

    try:
        tty.setcbreak(number)
        print(ALTERNATE, end='', flush=True)
        yield keys
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
        print(NORMAL, end='', flush=True)
