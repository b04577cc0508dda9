"""Compare two profiles: what takes a larger share of the samples than before, and what a smaller one.

Both the table and the graph leave out what chance explains: a difference of less than two standard errors. The graph is
that of the new profile, so functions that are gone are only in the table. The idea is Brendan Gregg's (differential
flame graphs, 2014).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

from .flame import VIEWS, Node, draw, tree
from .phases import OUTSIDE, ROWS, phase_of
from .speedscope import Stack, read

ERRORS = 2  # standard errors that a difference must exceed
MOST = 15  # functions in the table
STEPS = (1.0, 3.0)  # percentage points from which on a change is more than a little, and much


def chance(before: float, after: float, samples: tuple[int, int]) -> float:
    """Return how far two shares may be apart by chance, in percentage points."""
    share = (before * samples[0] + after * samples[1]) / sum(samples) / 100
    return 100 * ERRORS * sqrt(share * (1 - share) * (1 / samples[0] + 1 / samples[1]))


def mark(node: Node, old: Node | None, samples: tuple[int, int]) -> None:
    """Colour a function and all that it calls by their change."""
    before, after = 100 * old.count / samples[0] if old else 0.0, 100 * node.count / samples[1]
    change = after - before
    node.note = f'before: {before:.1f} %, now: {after:.1f} %'
    node.group = 'unchanged'
    if abs(change) > chance(before, after, samples):
        size = sum(abs(change) >= step for step in STEPS)
        less, more = ('a little less', 'less', 'much less'), ('a little more', 'more', 'much more')
        node.group = (more if change > 0 else less)[size]
    for key, child in node.children.items():
        mark(child, old.children.get(key) if old else None, samples)


def in_loops(threads: dict[str, list[Stack]]) -> dict[str, list[Stack]]:
    """Return the threads that run a loop; all threads if none does."""
    found = {name: stacks for name, stacks in threads.items() if any(phase_of(each) != OUTSIDE for each in stacks)}
    return found or threads


def counted(threads: dict[str, list[Stack]]) -> tuple[Counter[str], Counter[str]]:
    """Return the samples of each phase, and those in which each function was the innermost one."""
    phases: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for stacks in threads.values():
        for stack in stacks:
            phases[phase_of(stack)] += 1
            own[f'{stack[-1].function} ({stack[-1].path})'] += 1
    return phases, own


def rows(before: Counter[str], after: Counter[str], samples: tuple[int, int]) -> list[dict[str, Any]]:
    """Return what changed by more than chance, the largest change first."""
    found = []
    for name in before | after:
        shares = 100 * before[name] / samples[0], 100 * after[name] / samples[1]
        if abs(shares[1] - shares[0]) > chance(*shares, samples):
            found.append({'name': name, 'before': round(shares[0], 2), 'after': round(shares[1], 2)})
    return sorted(found, key=lambda row: -abs(row['after'] - row['before']))


def compare(old: dict[str, list[Stack]], new: dict[str, list[Stack]]) -> dict[str, Any]:
    """Return the table of one view."""
    before, after = counted(old), counted(new)
    samples = before[0].total(), after[0].total()
    phases = [
        {
            'phase': name,
            'before': round(100 * before[0][name] / samples[0], 2),
            'after': round(100 * after[0][name] / samples[1], 2),
        }
        for name in ROWS
        if before[0][name] or after[0][name]
    ]
    return {'samples': samples, 'phases': phases, 'functions': rows(before[1], after[1], samples)}


def cost(folder: Path) -> float | None:
    """Return the CPU time for each read of the profile in this folder, in microseconds, if it is known."""
    for name in ('phases.json', 'kernel.json'):
        if (folder / name).exists():
            spent = json.loads((folder / name).read_text())['reactor']
            if spent and spent['counts'].get('reads'):
                return float(1e6 * spent['cpu_seconds'] / spent['counts']['reads'])
    return None


def text(result: dict[str, Any], view: str) -> str:
    """Return the table of one view for a terminal."""
    before, after = result['samples']
    lines = [f'{VIEWS[view]}: {before:,} samples before, {after:,} now', '']
    lines.append(f'{"":<44}{"before %":>10}{"now %":>8}{"change":>9}')
    lines += [line(row['phase'], row) for row in result['phases']]
    lines += ['', 'functions whose own time changed by more than chance explains']
    lines += [line(row['name'], row) for row in result['functions'][:MOST]] or ['none']
    if len(result['functions']) > MOST:
        lines.append(f'and {len(result["functions"]) - MOST} more, see diff.json')
    return '\n'.join(lines) + '\n'


def line(name: str, row: dict[str, Any]) -> str:
    return f'{name:<44}{row["before"]:>10.1f}{row["after"]:>8.1f}{row["after"] - row["before"]:>+9.1f}'


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.diff', description='Compare the profile in OUT with an earlier one in BASELINE.'
    )
    parser.add_argument('out', type=Path)
    parser.add_argument('baseline', type=Path)
    args = parser.parse_args()
    views = [
        view
        for view in VIEWS
        if all((folder / f'{view}.speedscope.json').exists() for folder in (args.out, args.baseline))
    ]
    if not views:
        sys.exit(
            f'{args.baseline} has no recording of the same kind: name the folder of a profile by the same recorder'
        )
    results, texts = {}, []
    costs = cost(args.baseline), cost(args.out)
    if costs[0] and costs[1]:
        texts.append(
            f'CPU for each read: {costs[0]:.2f} us before, {costs[1]:.2f} us now ({costs[1] / costs[0]:.3f} x)\n'
        )
    for view in views:
        old, new = (in_loops(read(folder / f'{view}.speedscope.json')) for folder in (args.baseline, args.out))
        results[view] = compare(old, new)
        texts.append(text(results[view], view))
        root = tree(new)
        mark(root, tree(old), results[view]['samples'])
        title = f'What changed in {VIEWS[view].partition(",")[0]}'
        subtitle = 'red: a larger share than before; blue: a smaller one; grey: no more than chance'
        (args.out / f'diff-{view}.svg').write_text(draw(root, title, subtitle))
    (args.out / 'diff.json').write_text(json.dumps(results, indent=1) + '\n')
    (args.out / 'diff.txt').write_text('\n'.join(texts))
    print('\n'.join(texts), end='')


if __name__ == '__main__':
    main()
