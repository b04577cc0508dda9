#!/usr/bin/env python3
"""Count the user instructions that each request costs, and compare them with perf/instructions/budgets.json.

    python -m perf.instructions                     measure the reactor, print a table
    python -m perf.instructions --check             the same; status 1 when a workload costs 2 % too much
    python -m perf.instructions --only churn,seed   these workloads alone
    python -m perf.instructions --peers uvloop      uvloop beside it
    python -m perf.instructions --update            write what was measured as the budget

It takes valgrind (Debian: `apt-get install valgrind`). Counts do not depend on the load of the machine, so that one run
is enough, and a workload on a busy machine gives the same figure. They are no times: system calls count nothing.

Status: 0 when all was measured and, with --check, no budget was exceeded; 1 when one was, or when a workload could not
be measured; 2 for a wrong command line; 3 when there is no valgrind.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perf.common import machine
from perf.common.server import PROJECT, Failed

from . import budgets, callgrind
from .measure import measure
from .workloads import WORKLOADS

OURS = 'reactor'
OTHERS = ('uvloop',)
UNSTEADY = 0.005  # blocks that differ by more are reported: their median is no figure to compare
FAILED, NO_VALGRIND = 1, 3


def arguments(argv=None):
    parser = argparse.ArgumentParser(description='Count user instructions per request, under callgrind.')
    parser.add_argument('--only', '--workloads', type=names, metavar='NAME[,..]', help='of ' + ', '.join(WORKLOADS))
    parser.add_argument('--peers', type=names, default=[], metavar='NAME[,..]', help='of ' + ', '.join(OTHERS))
    parser.add_argument('--check', action='store_true', help='status 1 when a budget is exceeded by more than 2 %%')
    parser.add_argument('--update', action='store_true', help='write what was measured as the budget of this Python')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures to FILE as well')
    parser.add_argument('--budgets', type=Path, default=budgets.FILE, metavar='FILE', help='default %(default)s')
    parser.add_argument('--scale', type=float, default=1, help='of the number of requests; below 1 for a trial')
    parser.add_argument('--list', action='store_true', help='tell the workloads, measure nothing')
    args = parser.parse_args(argv)
    if args.check and args.update:
        parser.error('--check compares with the budget and --update replaces it: choose one')
    if args.update and args.scale != 1:
        parser.error('--update needs the whole number of requests, without --scale')
    for chosen, known in ((args.only, WORKLOADS), (args.peers, OTHERS)):
        if unknown := set(chosen or ()) - set(known):
            parser.error(f'unknown: {", ".join(sorted(unknown))}; there are {", ".join(known)}')
    return args


def names(text):
    return [name for name in text.split(',') if name]


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure_all(chosen, peers, scale):
    """{workload: {peer: Figure}} and {workload: {peer: why there is none}}."""
    figures, failures = {}, {}
    with tempfile.TemporaryDirectory(prefix='instructions-') as folder:
        for workload in chosen:
            for peer in peers:
                started = time.monotonic()
                if reason := dict(workload.not_for).get(peer):
                    say(f'{workload.name:<12} {peer:<8} left out: {reason}')
                    continue
                try:
                    found = measure(peer, workload, Path(folder), scale)
                except (Failed, OSError, subprocess.SubprocessError) as exc:
                    failures.setdefault(workload.name, {})[peer] = f'{type(exc).__name__}: {exc}'
                    say(f'{workload.name:<12} {peer:<8} FAILED: {type(exc).__name__}: {exc}')
                    continue
                figures.setdefault(workload.name, {})[peer] = found
                say(
                    f'{workload.name:<12} {peer:<8} {time.monotonic() - started:5.1f} s  {found.instructions:10,.0f} '
                    f'instructions/{workload.what}, blocks differ by {found.spread:.2%}'
                )
                if found.spread > UNSTEADY:
                    say(f'{workload.name:<12} {peer:<8} UNSTEADY: more than {UNSTEADY:.1%}')
    return figures, failures


def table(figures, known, others):
    """The figures of each workload as lines of text."""
    head = ['workload', 'per', OURS, *(column for name in others for column in (name, 'ratio')), 'budget', 'deviation']
    rows = [head]
    for name, found in figures.items():
        row = [name, WORKLOADS[name].what]
        ours = found.get(OURS)
        row.append(f'{ours.instructions:,.0f}' if ours else 'failed')
        for other in others:
            theirs = found.get(other)
            row.append(f'{theirs.instructions:,.0f}' if theirs else '-')
            row.append(f'{ours.instructions / theirs.instructions:.2f}' if ours and theirs else '-')
        budget = known.get(name)
        row.append('-' if budget is None else f'{budget:,}')
        row.append('-' if budget is None or not ours else f'{budgets.deviation(ours.instructions, budget):+.2%}')
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(line))
        for line in (list(zip(row, widths, strict=True)) for row in rows)
    )


def verdicts(ours, known):
    """Say which budgets were exceeded, or can be lowered; return whether one was exceeded."""
    exceeded = False
    for name, found in ours.items():
        budget = known.get(name)
        verdict = budgets.judge(found.instructions, budget)
        text = f'{name}: {found.instructions:,.0f} instructions per {WORKLOADS[name].what}'
        if verdict == budgets.ABOVE:
            exceeded = True
            print(f'ABOVE BUDGET  {text}, {budgets.deviation(found.instructions, budget):+.1%} from {budget:,}')
        elif verdict == budgets.BELOW:
            print(f'budget can be lowered  {text}, the budget is {budget:,} (--update --only {name} writes it)')
        elif verdict == budgets.NONE and known:
            print(f'NO BUDGET  {text}: measured only')
    return exceeded


def main(argv=None):
    args = arguments(argv)
    if args.list:
        for workload in WORKLOADS.values():
            print(f'{workload.name:<12} {workload.about}')
        return 0
    if reason := callgrind.missing():
        say(f'NOT MEASURED: instructions per request: {reason}')
        return NO_VALGRIND
    everything = budgets.read(args.budgets) if args.budgets.exists() else {}
    known = everything.get(budgets.build(), {}).get('instructions', {})
    chosen = [WORKLOADS[name] for name in args.only or WORKLOADS]
    figures, failures = measure_all(chosen, [OURS, *args.peers], args.scale)
    ours = {name: found[OURS] for name, found in figures.items() if OURS in found}
    print(f'Python {budgets.build()}, commit {machine.commit(PROJECT)}, user instructions')
    print(table(figures, known, args.peers))
    if not known:
        print(f'NO BUDGET FOR THIS PYTHON ({budgets.build()}): measured only')
    exceeded = verdicts(ours, known)
    if args.json:
        args.json.write_text(json.dumps(report(figures, failures, known), indent=2) + '\n')
    if args.update:
        write_budgets(ours, known, args.budgets)
    return FAILED if failures or (args.check and exceeded) else 0


def report(figures, failures, known):
    return {
        'python': budgets.build(),
        'commit': machine.commit(PROJECT),
        'workloads': {
            name: {'budget': known.get(name), **{peer: vars(figure) for peer, figure in found.items()}}
            for name, found in figures.items()
        },
        'failures': failures,
    }


def write_budgets(ours, known, path):
    for name, found in ours.items():
        before = f'{known[name]:,}' if name in known else 'none'
        print(f'BUDGET CHANGED  {name}: {before} -> {found.instructions:,.0f}')
    budgets.update({name: found.instructions for name, found in ours.items()}, machine.commit(PROJECT), path)
    print(f'WROTE {path}: commit it with the reason why these costs are right')


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
