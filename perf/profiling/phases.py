"""The table by phase: how the time of a turn is divided, according to the sampler and to the reactor's own clock.

A sample belongs to the outermost phase in its stack. When the two measurements are compared, samples between two phases
count as `_poll`. The reason is the reactor's `idle_time`, which runs from the end of a turn's last phase to the end of
the next turn's wait, and so contains the time between phases.
"""

from __future__ import annotations

import argparse
import json
import linecache
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .speedscope import Stack, read

PHASES = ('_poll', '_dispatch', '_run_timers', '_run_soon', '_run_completions')
BETWEEN = 'between phases'
OUTSIDE = 'outside the loop'
ROWS = (*PHASES, BETWEEN, OUTSIDE)
FUNCTIONS = {f'Loop.{phase}': phase for phase in PHASES} | {'TimerHeap.collect': '_run_timers'}
AROUND = {'Loop.run', 'Loop.run_once', 'Loop._turn'}
TIMES = dict(
    zip(PHASES, ('idle_time', 'dispatch_time', 'timers_time', 'soon_time', 'completions_time'), strict=True)
)  # {phase: the reactor's counter for it}

TOLERANCE = 5.0  # percentage points by which sampler and reactor may differ
FEWEST = 100  # samples; with fewer samples, shares mean nothing
COSTLIEST = 5  # lines shown for each phase


def phase_of(stack: Stack) -> str:
    """Return the row of the table that a sample belongs to."""
    place = OUTSIDE
    for frame in stack:
        if frame.function in FUNCTIONS:
            return FUNCTIONS[frame.function]
        if frame.function in AROUND:
            place = BETWEEN
    return place


class Count:
    """The samples of a recording, counted by phase and, in each phase, by the line that was running."""

    def __init__(self, threads: dict[str, list[Stack]]) -> None:
        self.phases: Counter[str] = Counter()
        self.lines: dict[str, Counter[Any]] = {row: Counter() for row in ROWS}
        self.elsewhere = 0  # samples of threads that do not run a loop
        for stacks in threads.values():
            rows = [phase_of(stack) for stack in stacks]
            if all(row == OUTSIDE for row in rows):
                self.elsewhere += len(rows)
                continue
            self.phases.update(rows)
            for row, stack in zip(rows, stacks, strict=True):
                self.lines[row][stack[-1]] += 1
        self.samples = sum(self.phases.values())

    def share(self, count: int) -> float:
        """Return `count` as a percentage of the samples of threads that run a loop."""
        return 100 * count / self.samples if self.samples else 0.0


def table(wall: Count, cpu: Count, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of phases.json; without counters, it has only the data from the samples."""
    spent = interval(before, after) if before and after else None
    rows = [row(name, wall, cpu, spent) for name in ROWS]
    result: dict[str, Any] = {
        'wall_samples': wall.samples,
        'cpu_samples': cpu.samples,
        'other_threads': {'wall_samples': wall.elsewhere, 'cpu_samples': cpu.elsewhere},
        'phases': [each for each in rows if each['phase'] in PHASES or each['wall_samples'] or each['cpu_samples']],
        'reactor': spent,
        'agreement': None,
        'warnings': [],
    }
    if not wall.samples:
        result['warnings'].append('no sample is in a turn of a reactor: look at the flame graphs')
    elif spent:
        result['agreement'] = agreement(rows)
        if not result['agreement']['agrees']:
            result['warnings'].append(verdict(result['agreement']))
    if wall.samples and cpu.samples < FEWEST:
        result['warnings'].append(f'{cpu.samples} samples with the GIL held: too few for exact CPU shares')
    return result


def row(name: str, wall: Count, cpu: Count, spent: dict[str, Any] | None) -> dict[str, Any]:
    """Return one phase: its samples, its shares, the reactor's share, and its costliest lines."""
    seconds = spent['seconds'][name] if spent and name in PHASES else None
    lines = wall.lines[name] or cpu.lines[name]
    return {
        'phase': name,
        'wall_samples': wall.phases[name],
        'wall_percent': round(wall.share(wall.phases[name]), 2),
        'cpu_samples': cpu.phases[name],
        'cpu_percent': round(cpu.share(cpu.phases[name]), 2),
        'reactor_seconds': seconds,
        'reactor_percent': round(100 * seconds / spent['elapsed'], 2) if spent and seconds is not None else None,
        'lines': [
            {
                'line': str(frame),
                'source': linecache.getline(frame.file, frame.line).strip(),
                'wall_percent': round(wall.share(wall.lines[name][frame]), 2),
                'cpu_percent': round(cpu.share(cpu.lines[name][frame]), 2),
            }
            for frame, _ in lines.most_common(COSTLIEST)
        ],
    }


def interval(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of the reactor's counters between two snapshots."""
    spent = {name: after[name] - value for name, value in before.items() if isinstance(value, int | float)}
    return {
        'elapsed': round(spent.pop('clock'), 6),
        'cpu_seconds': round(spent.pop('cpu_seconds'), 6),
        'seconds': {phase: round(spent.pop(name), 6) for phase, name in TIMES.items()},
        'counts': {name: after[name] if name in ('incoming', 'outgoing') else count for name, count in spent.items()
                   if name not in ('timers', 'handles')},
    }  # fmt: skip


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest difference between the sampler and the reactor, in percentage points, and its phase."""
    between = sum(each['wall_percent'] for each in rows if each['phase'] == BETWEEN)
    apart = {
        each['phase']: each['wall_percent'] + (between if each['phase'] == '_poll' else 0) - each['reactor_percent']
        for each in rows
        if each['phase'] in PHASES
    }
    worst = max(apart, key=lambda phase: abs(apart[phase]))
    points = round(abs(apart[worst]), 2)
    return {'points': points, 'phase': worst, 'tolerance': TOLERANCE, 'agrees': points <= TOLERANCE}


def verdict(agreed: dict[str, Any]) -> str:
    """Return a sentence that says whether the sampler and the reactor agree."""
    apart = f'{agreed["points"]:.1f} points apart at most, in {agreed["phase"]}'
    if agreed['agrees']:
        return f'sampler and reactor agree: {apart}'
    return f'sampler and reactor DISAGREE: {apart} (at most {agreed["tolerance"]:.0f} is allowed); trust neither'


def text(result: dict[str, Any], meta: dict[str, Any]) -> str:
    """Return the table for a terminal."""
    lines = [
        f'{meta["target"]}: {result["wall_samples"]:,} wall samples, {result["cpu_samples"]:,} with the GIL held, '
        f'{meta["seconds"]} s each at {meta["rate"]} Hz, recorded by {meta["recorder"]}',
        '',
        f'{"phase":<18}{"samples":>9}{"wall %":>9}{"CPU %":>9}{"reactor %":>11}',
    ]
    for each in result['phases']:
        clock = '' if each['reactor_percent'] is None else f'{each["reactor_percent"]:.1f}'
        if each['phase'] == BETWEEN and result['reactor']:
            clock = 'in _poll'
        lines.append(
            f'{each["phase"]:<18}{each["wall_samples"]:>9,}{each["wall_percent"]:>9.1f}{each["cpu_percent"]:>9.1f}'
            f'{clock:>11}'.rstrip()
        )
    for each in result['phases']:
        if each['lines']:
            lines += ['', f'{"wall %":>8}{"CPU %":>8}  costliest lines of {each["phase"]}']
            lines += [line_text(line) for line in each['lines']]
    lines.append('')
    if result['agreement'] and result['agreement']['agrees']:
        lines.append(verdict(result['agreement']))
    lines += [f'WARNING: {warning}' for warning in meta['warnings'] + result['warnings']]
    return '\n'.join(lines).rstrip() + '\n'


def line_text(line: dict[str, Any]) -> str:
    """Return the text for one of the costliest lines."""
    return f'{line["wall_percent"]:8.1f}{line["cpu_percent"]:8.1f}  {line["line"]}  {line["source"]}'.rstrip()


def snapshots(path: Path | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the first two lines of counters that the server printed, or (None, None)."""
    lines = path.read_text().splitlines() if path else []
    found = [json.loads(line) for line in lines if line.startswith('{')]
    return (found[0], found[1]) if found[1:] else (None, None)


def enough(path: Path) -> dict[str, list[Stack]]:
    """Read a recording; exit with a message if it has too few samples for a table."""
    threads = read(path)
    recorded = sum(map(len, threads.values()))
    if recorded < FEWEST:
        sys.exit(f'{recorded} samples are too few; {FEWEST} are needed: use a longer --seconds or a higher --rate')
    return threads


def save(out: Path, name: str, result: dict[str, Any], shown: str) -> None:
    """Write a table as NAME.json and NAME.txt, and print it."""
    (out / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    (out / f'{name}.txt').write_text(shown)
    print(shown, end='')


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.phases', description='Write phases.json and phases.txt next to the two recordings.'
    )
    parser.add_argument('out', type=Path, help='the folder with wall.speedscope.json, cpu.speedscope.json, meta.json')
    parser.add_argument('--counters', type=Path, help="the server's output, with a line of counters before and after")
    args = parser.parse_args()
    threads = enough(args.out / 'wall.speedscope.json')
    meta = json.loads((args.out / 'meta.json').read_text())
    result = table(Count(threads), Count(read(args.out / 'cpu.speedscope.json')), *snapshots(args.counters))
    save(args.out, 'phases', result, text(result, meta))


if __name__ == '__main__':
    main()
