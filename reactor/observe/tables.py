"""Tables for a terminal, made from the answers of a control socket.

Counters have the same names as in `Stats`, so that users can look them up. Counters that are 0 are left out. Control
characters are replaced, so that no text can send commands to the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from operator import itemgetter
from typing import Any

from ..loop.counters import COUNTS, GAUGES, TIMES
from ..loop.stats import Stats

Answer = dict[str, Any]

MOST_COLUMNS = 8  # workers shown side by side


def printable(text: object) -> str:
    """Return `text` with each line break and other control character replaced by a question mark."""
    return ''.join(letter if letter.isprintable() else '?' for letter in str(text))


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Format rows as aligned columns: the first column is left-aligned, the others are right-aligned."""
    cells = [[printable(cell) for cell in row] for row in rows]
    first, *rest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        '  '.join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]).rstrip()
        for row in cells
    ]  # fmt: skip


def pairs(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Format names and values as two left-aligned columns."""
    width = max(len(name) for name, _ in rows)
    return [f'{name.ljust(width)}  {printable(value)}' for name, value in rows]


def shown(value: float | None) -> str:
    """Format a number with thousands separators; return '' for None."""
    if value is None:
        return ''
    return f'{value:,}' if isinstance(value, int) else f'{value:,.3f}'


def stats(answer: Answer, before: Answer | None = None) -> list[str]:
    """Format the counters: their sum, the rate of change since `before`, and a column for each worker."""
    total, names = answer['sum'], _columns(answer)
    workers = [answer['workers'][name] for name in names]
    rates = _rates(answer, before)
    rows: list[list[object]] = [['', 'all', *(['per second'] if rates else []), *names]]
    for name in (*GAUGES, 'handles', 'timers', *COUNTS, *TIMES, 'timer_lag_sum'):
        if total.get(name):
            rate = [f'{rates[name]:,.1f}' if name in rates else ''] if rates else []
            rows.append([name, shown(total[name]), *rate, *(shown(one.get(name)) for one in workers)])
    pids = ', '.join(str(one.get('pid')) for one in answer['workers'].values())
    lines = [f'reactor {printable(answer["version"])}, pid {pids}' + (', draining' if answer['draining'] else '')]
    lines += [_service(answer['service'])] if 'service' in answer else []
    lines += ['', *table(rows), *_left_out(answer), *_silent(answer)]
    slow = [[place, count, f'{longest:.3f} s'] for place, count, longest in total['slow']]
    return [*lines, '', *table([['slow callbacks', 'times', 'longest'], *slow])] if slow else lines


def phases(answer: Answer, before: Answer | None = None) -> list[str]:
    """Format the time spent in each phase and the timer lag, since `before` or since the start."""
    names = _columns(answer)
    # Subtract for each worker, then add up. A sum can decrease, because the counts of a new worker begin at 0.
    each = {name: _since(one, before and before['workers'].get(name)) for name, one in answer['workers'].items()}
    parts = [_together(list(each.values()) or [_since(answer['sum'], before and before['sum'])])]
    parts += [each[name] for name in names]
    rows: list[list[object]] = [['', 'seconds', 'share', *names]]
    for phase in parts[0]['seconds']:
        shares = [_share(part['seconds'], phase) for part in parts]
        rows.append([phase, f'{parts[0]["seconds"][phase]:,.3f}', *shares])
    return [*table(rows), *_left_out(answer), *_silent(answer), '', *_lateness(parts[0])]


def handles(answer: Answer, before: Answer | None = None) -> list[str]:
    """Format the list of open handles, of one reactor or of each worker."""
    if 'workers' in answer:
        return _each(answer, handles)
    kinds = sorted(answer['kinds'].items(), key=lambda item: (-item[1], item[0]))
    lines = [f'{sum(answer["kinds"].values()):,} open: ' + ', '.join(f'{count:,} {kind}' for kind, count in kinds)]
    for one in answer['handles']:
        aside = '' if one['keeps_running'] else ' (does not keep the program running)'
        lines.append(f'{one["seconds"]:>10,.1f} s  {one["handle"]} waits for {one["waits_for"]}{aside}')
    if answer['left_out']:
        lines.append(f'and {answer["left_out"]:,} more; use --limit to list more')
    return [printable(line) for line in lines]


def why_alive(answer: Answer, before: Answer | None = None) -> list[str]:
    """Format the reasons why the loop is still running, of one reactor or of each worker."""
    if 'workers' in answer:
        return _each(answer, why_alive)
    lines = [printable(reason) for reason in answer['reasons']] or ['nothing keeps the program running']
    return [*lines, 'and more; use --limit to list more'] if answer['more'] else lines


def drain(answer: Answer, before: Answer | None = None) -> list[str]:
    """Describe the drain that has begun."""
    if answer['drain_timeout'] is None:
        return ['draining, with the times of the program']
    return [
        f'draining: accepts connections for {answer["lame_duck"]:g} s, '
        f'resets the remaining ones after {answer["drain_timeout"]:g} s'
    ]


def commands(answer: Answer, before: Answer | None = None) -> list[str]:
    """Format the list of commands and their arguments."""
    lines = []
    for name, command in answer['commands'].items():
        lines.append(f'{name:<10}  {command["what"]}')
        lines += [f'{"":<10}    {key}: {what}' for key, what in command['arguments'].items()]
    return [printable(line) for line in lines]


TABLES = {
    'help': commands,
    'stats': stats,
    'phases': phases,
    'handles': handles,
    'why_alive': why_alive,
    'drain': drain,
}


def _columns(answer: Answer) -> list[str]:
    names = list(answer['workers'])
    return names[:MOST_COLUMNS] if len(names) > 1 else []


def _service(service: Answer) -> str:
    states = Counter(worker['state'] for worker in service['workers'])
    parts = [f'{count} {state}' for state, count in sorted(states.items(), key=itemgetter(1), reverse=True)]
    failed = sum(service['restarts'].values())
    return f'workers: {", ".join(parts) or "none"}' + (f'; {failed} failed so far' if failed else '')


def _left_out(answer: Answer) -> list[str]:
    more = len(answer['workers']) - MOST_COLUMNS
    return [f'and {more} more workers; --json shows all of them'] if more > 0 else []


def _silent(answer: Answer) -> list[str]:
    return [printable(f'worker {name}: {error}') for name, error in answer.get('silent', {}).items()]


def _each(answer: Answer, format_one: Callable[[Answer], list[str]]) -> list[str]:
    lines: list[str] = []
    for one in answer['workers']:
        state = '' if one['state'] == 'serving' else f', {one["state"]}'
        lines += [*[''] * bool(lines), printable(f'worker {one["worker"]} (pid {one["pid"]}{state})')]
        lines += [printable(one['error'])] if 'error' in one else format_one(one)
    return lines or ['there is no worker']


def _rates(answer: Answer, before: Answer | None) -> dict[str, float]:
    if before is None or answer['clock'] <= before['clock']:
        return {}
    seconds = answer['clock'] - before['clock']
    grown = dict.fromkeys(COUNTS, 0)
    for worker, now in answer['workers'].items():
        then = before['workers'].get(worker, {})
        if then.get('pid') != now.get('pid'):
            then = {}  # the worker has been replaced, and its counts began at 0
        for name in COUNTS:
            grown[name] += max(0, now.get(name, 0) - then.get(name, 0))
    return {name: count / seconds for name, count in grown.items()}


def _since(now: Answer, before: Answer | None) -> Answer:
    if before is None or now['loop_count'] < before['loop_count'] or _clock(now) < _clock(before):
        return now
    return {
        'seconds': {phase: value - before['seconds'][phase] for phase, value in now['seconds'].items()},
        'timer_lag': [new - old for new, old in zip_longest(now['timer_lag'], before['timer_lag'], fillvalue=0)],
        'timer_lag_sum': now['timer_lag_sum'] - before['timer_lag_sum'],
    }


def _clock(part: Answer) -> float:
    """Return the seconds that a loop has run, by its own clock."""
    return float(sum(part['seconds'].values()))


def _together(parts: list[Answer]) -> Answer:
    first = parts[0]
    return {
        'seconds': {phase: sum(part['seconds'][phase] for part in parts) for phase in first['seconds']},
        'timer_lag': [sum(counts) for counts in zip_longest(*(part['timer_lag'] for part in parts), fillvalue=0)],
        'timer_lag_sum': sum(part['timer_lag_sum'] for part in parts),
    }


def _share(seconds: dict[str, float], phase: str) -> str:
    total = sum(seconds.values())
    return f'{seconds[phase] / total:.1%}' if total > 0 else ''


def _lateness(part: Answer) -> list[str]:
    counts, seen = part['timer_lag'], 0
    total = sum(counts)
    if not total:
        return ['no timer has fired']
    late = []
    for share in (0.5, 0.99, 1):
        while seen < len(counts) - 1 and sum(counts[: seen + 1]) < total * share:
            seen += 1
        bounds = Stats.lag_bounds
        late.append(f'{share:.0%} by ' + (f'less than {_time(bounds[seen])}' if seen < len(bounds) else '16 s or more'))
    mean = _time(part['timer_lag_sum'] / total)
    return [f'{total:,} timers fired; late: {", ".join(late)}; mean {mean}']


def _time(seconds: float) -> str:
    return f'{seconds * 1000:.2g} ms' if seconds < 0.1 else f'{seconds:.3g} s'
