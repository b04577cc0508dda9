"""The table of whole stacks: for each phase and each callback, how long Python, C and the kernel's functions ran.

perf samples only what runs, so all shares are of the running time first. The CPU time between two snapshots of the
reactor's counters turns them into shares of the elapsed time, and the reactor's own clock says how long each phase
lasted. What it lasted longer than it ran is waiting: in the poll for events, elsewhere for a processor.

A function is *Python* while the interpreter's loop executes its bytecode, *C* while a C function that it has called
runs (those of the interpreter itself among them), and *kernel* during system calls and interrupts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from .phases import (
    BETWEEN,
    COSTLIEST,
    FUNCTIONS,
    OUTSIDE,
    PHASES,
    ROWS,
    agreement,
    enough,
    interval,
    phase_of,
    save,
    snapshots,
    verdict,
)
from .speedscope import KINDS, Frame, Stack

WHOLE = 95.0  # percent of the samples that should belong to a phase
CALLBACKS = 8  # callbacks shown for each phase
SYSTEM_CALL = re.compile(r'__(?:x64|arm64|se|do)_sys_(\w+)$')
STANDARD = re.compile(r'/lib(64)?/python3\.\d+/(?!site-packages|dist-packages)|^<frozen ')


class Tally:
    """The samples of a phase or a callback: by kind of the innermost frame, and by function of the kernel."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.kernel: Counter[tuple[str, str]] = Counter()  # {(system call, innermost function): samples}
        self.path: Counter[Stack] = Counter()  # {all frames of the kernel: samples}

    @property
    def samples(self) -> int:
        return sum(self.kinds.values())

    def add(self, stack: Stack) -> None:
        kind = stack[-1].kind
        self.kinds[kind] += 1
        if kind == 'kernel':
            inner = tuple(frame for frame in stack if frame.kind == 'kernel')
            call = next((found[1] for frame in inner if (found := SYSTEM_CALL.match(frame.function))), 'no system call')
            self.kernel[call, stack[-1].function] += 1
            self.path[inner] += 1


def callback_of(stack: Stack, package: str) -> Frame | None:
    """Return the outermost frame below the phase that belongs neither to the reactor nor to the standard library."""
    below = False
    for frame in stack:
        if below and frame.kind == 'Python' and not is_ours(frame.file, package) and not STANDARD.search(frame.file):
            return frame
        below = below or frame.function in FUNCTIONS
    return None


def is_ours(file: str, package: str) -> bool:
    """Return whether a file is part of the reactor. The demo is a program like those of users."""
    return file.startswith(package) and not file.startswith(package + 'demo/')


@cache
def first_lines(file: str) -> dict[str, int]:
    """Return {qualified name of a function: the line on which it begins}; empty if the file cannot be read."""
    try:
        todo = [compile(Path(file).read_bytes(), file, 'exec', dont_inherit=True)]
    except (OSError, SyntaxError, ValueError):
        return {}
    lines: dict[str, int] = {}
    for code in todo:
        lines.setdefault(code.co_qualname, code.co_firstlineno)
        todo += [each for each in code.co_consts if isinstance(each, CodeType)]
    return lines


def name_of(frame: Frame) -> str:
    """Return `module:function:line` for a callback."""
    path = Path(frame.file)
    module = [path.stem] if path.stem != '__init__' else []
    for folder in path.parents:
        if not (folder / '__init__.py').exists():
            break
        module.insert(0, folder.name)
    line = first_lines(frame.file).get(frame.function)
    return f'{".".join(module)}:{frame.function}' + (f':{line}' if line else '')


def package_of(threads: dict[str, list[Stack]]) -> str:
    """Return the folder of the reactor that was recorded, with a slash at its end; '?' if no turn was recorded."""
    for stacks in threads.values():
        for stack in stacks:
            for frame in stack:
                if frame.function == 'Loop._turn':
                    return f'{Path(frame.file).parents[1]}/'
    return '?'


def tallies(threads: dict[str, list[Stack]]) -> tuple[dict[str, Tally], dict[str, dict[str, Tally]], int]:
    """Return the tally of each phase, those of each phase's callbacks, and the samples of threads without a loop."""
    package = package_of(threads)
    rows = {name: Tally() for name in ROWS}
    callbacks: dict[str, dict[str, Tally]] = {name: {} for name in ROWS}
    elsewhere = 0
    for stacks in threads.values():
        found = [phase_of(stack) for stack in stacks]
        if all(row == OUTSIDE for row in found) and len(threads) > 1:
            elsewhere += len(found)
            continue
        for row, stack in zip(found, stacks, strict=True):
            rows[row].add(stack)
            if (callback := callback_of(stack, package)) is not None:
                callbacks[row].setdefault(name_of(callback), Tally()).add(stack)
    return rows, callbacks, elsewhere


def described(tally: Tally, total: int, running: float) -> dict[str, Any]:
    """Return a row: its samples, and its shares of the elapsed time, of which `running` percent were spent running."""

    def share(count: int) -> float:
        return round(running * count / total, 2) if total else 0.0

    return {
        'samples': tally.samples,
        **{f'{kind.lower()}_percent': share(tally.kinds[kind]) for kind in KINDS},
        'running_percent': share(tally.samples),
        'kernel_functions': [
            {'system_call': call, 'function': function, 'percent': share(count)}
            for (call, function), count in tally.kernel.most_common(COSTLIEST)
        ],
        'kernel_path': heaviest(tally.path),
    }


def heaviest(paths: Counter[Stack]) -> list[str]:
    """Return the kernel's functions from the outermost inwards, as long as one path has half of the samples or more."""
    names: list[str] = []
    total = sum(paths.values())
    while paths:
        following: Counter[str] = Counter()
        for path, count in paths.items():
            if len(path) > len(names):
                following[path[len(names)].function] += count
        (name, count), *_ = following.most_common(1) or [('', 0)]
        if 2 * count < total or not count:
            break
        paths = Counter({p: n for p, n in paths.items() if len(p) > len(names) and p[len(names)].function == name})
        names.append(name)
    return names


def table(
    threads: dict[str, list[Stack]], before: dict[str, Any] | None, after: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the content of kernel.json. Without counters, shares are of the running time."""
    spent = interval(before, after) if before and after else None
    tallied, callbacks, elsewhere = tallies(threads)
    total = sum(tally.samples for tally in tallied.values())
    running = 100 * spent['cpu_seconds'] / spent['elapsed'] if spent else 100.0
    rows = []
    for name, tally in tallied.items():
        if not tally.samples and name not in PHASES:
            continue
        seconds = spent['seconds'].get(name) if spent else None
        row = {'phase': name, **described(tally, total, running), 'reactor_percent': None, 'waiting_percent': None}
        if spent and seconds is not None:
            row['reactor_percent'] = round(100 * seconds / spent['elapsed'], 2)
        ranked = sorted(callbacks[name].items(), key=lambda found: -found[1].samples)[:CALLBACKS]
        row['callbacks'] = [{'callback': each, **described(of_it, total, running)} for each, of_it in ranked]
        rows.append(row)
    result = {
        'samples': total,
        'other_threads': elsewhere,
        'phases': rows,
        'in_phases_percent': round(100 * (total - tallied[OUTSIDE].samples) / total, 2) if total else 0.0,
        'reactor': spent,
        'agreement': None,
        'warnings': [],
    }
    if spent and result['in_phases_percent'] >= WHOLE:
        result['agreement'] = compare(rows, running)
    result['warnings'] = doubts(result)
    return result


def compare(rows: list[dict[str, Any]], running: float) -> dict[str, Any]:
    """Add what each phase waited, and return the agreement of the two clocks.

    When the two are compared, the time in which the process did not run counts as `_poll`: perf cannot see in which
    phase that was.
    """
    between = sum(row['running_percent'] for row in rows if row['phase'] == BETWEEN)
    measured = []
    for row in rows:
        if row['phase'] in PHASES:
            ran = row['running_percent'] + (between if row['phase'] == '_poll' else 0)
            row['waiting_percent'] = round(max(0.0, row['reactor_percent'] - ran), 2)
            wall = row['running_percent'] + (100 - running if row['phase'] == '_poll' else 0)
            measured.append({**row, 'wall_percent': wall})
        elif row['phase'] == BETWEEN:
            measured.append({**row, 'wall_percent': row['running_percent']})
    return agreement(measured)


def doubts(result: dict[str, Any]) -> list[str]:
    """Return a sentence for each reason to doubt the table."""
    if result['in_phases_percent'] < WHOLE:
        return [
            f'only {result["in_phases_percent"]:.1f} % of the samples belong to a phase, so they are not compared with '
            'the clock of the reactor: perf knows the names of Python functions from Python 3.12 on, if it runs with '
            '-X perf, and stacks are whole from Python 3.15 on'
        ]
    if result['agreement'] and not result['agreement']['agrees']:
        return [
            f'{verdict(result["agreement"])}. A phase that lasts longer than it runs was interrupted: '
            f'{result["reactor"]["counts"].get("preemptions", 0):,} times another process took the processor'
        ]
    return []


def text(result: dict[str, Any], meta: dict[str, Any]) -> str:
    """Return the table for a terminal."""
    of = 'the elapsed time' if result['reactor'] else 'the running time'
    lines = [
        f'{meta["target"]}: {result["samples"]:,} samples of running code, {meta["seconds"]} s at {meta["rate"]} Hz, '
        f'recorded by {meta["recorder"]}',
        f'{result["in_phases_percent"]:.1f} % of the samples belong to a phase; the table is in percent of {of}',
        '',
        f'{"phase, callback":<44}{"Python":>8}{"C":>7}{"kernel":>8}{"waiting":>9}{"reactor":>9}',
    ]
    for row in result['phases']:
        lines.append(row_text(row['phase'], row, row['waiting_percent'], row['reactor_percent']))
        lines += [row_text('  ' + each['callback'], each) for each in row['callbacks']]
    for row in result['phases']:
        for name, each in [(row['phase'], row), *((found['callback'], found) for found in row['callbacks'])]:
            if each['kernel_functions']:
                lines += ['', f'costliest functions of the kernel in {name}']
                lines += [
                    f'{found["percent"]:8.1f}  {found["system_call"]}: {found["function"]}'
                    for found in each['kernel_functions']
                ]
                lines += wrapped(each['kernel_path'])
    lines.append('')
    if result['agreement'] and result['agreement']['agrees']:
        lines.append(verdict(result['agreement']))
    lines += [f'WARNING: {warning}' for warning in meta['warnings'] + result['warnings']]
    return '\n'.join(lines).rstrip() + '\n'


def row_text(name: str, row: dict[str, Any], waiting: float | None = None, reactor: float | None = None) -> str:
    """Return one row of the table."""
    shares = f'{row["python_percent"]:>8.1f}{row["c_percent"]:>7.1f}{row["kernel_percent"]:>8.1f}'
    clock = ''.join(f'{"" if value is None else f"{value:.1f}":>9}' for value in (waiting, reactor))
    return f'{name:<44}{shares}{clock}'.rstrip()


def wrapped(names: list[str]) -> list[str]:
    """Return the heaviest path as lines that fit a terminal."""
    lines = ['          most of it by:']
    for name in names:
        if len(lines[-1]) + len(name) > 110:
            lines.append('           ')
        lines[-1] += f' {name} >'
    return [line.removesuffix(' >') if line is lines[-1] else line for line in lines] if names else []


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.kernel', description='Write kernel.json and kernel.txt next to the recording.'
    )
    parser.add_argument('out', type=Path, help='the folder with kernel.speedscope.json and meta.json')
    parser.add_argument('--counters', type=Path, help="the server's output, with a line of counters before and after")
    args = parser.parse_args()
    threads = enough(args.out / 'kernel.speedscope.json')
    meta = json.loads((args.out / 'meta.json').read_text())
    result = table(threads, *snapshots(args.counters))
    save(args.out, 'kernel', result, text(result, meta))


if __name__ == '__main__':
    main()
