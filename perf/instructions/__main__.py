"""Count the user instructions that each request costs, and compare them with perf/instructions/budgets.json.

    python -m perf.instructions                     measure the reactor and print a table
    python -m perf.instructions --check             measure, and exit with status 1 if a budget is exceeded by 2 %
    python -m perf.instructions --only churn,seed   measure only these workloads
    python -m perf.instructions --peers uvloop      measure uvloop too, and compare
    python -m perf.instructions --update            write the measured figures as the new budgets
    python -m perf.instructions --functions         also show the calls and bytecodes of each function

The command needs valgrind (Debian: `apt-get install valgrind`). Other work on the machine does not change the counts,
so one run is enough. The counts are not times: they leave out system calls.

Exit status: 0 when everything was measured and, with --check, no budget was exceeded; 1 when a budget was exceeded, or
a workload could not be measured; 2 for a wrong command line; 3 when valgrind is not installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perf.common import machine
from perf.common.command_line import names, refuse_unknown, say
from perf.common.server import PROJECT, Failed

from . import budgets, callgrind, functions
from .measure import measure
from .workloads import WORKLOADS

OURS = 'reactor'
OTHERS = ('uvloop',)
UNSTEADY = 0.005  # a larger relative difference between blocks is reported: such a figure should not be compared
FAILED, NO_VALGRIND = 1, 3


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        'python -m perf.instructions', description='Count the user instructions for each request, under callgrind.'
    )
    known = ', '.join(WORKLOADS)
    parser.add_argument('--only', '--workloads', type=names, metavar='NAME[,..]', help=f'choose from {known}')
    parser.add_argument('--peers', type=names, default=[], metavar='NAME[,..]', help='choose from ' + ', '.join(OTHERS))
    parser.add_argument(
        '--check', action='store_true', help='exit with status 1 when a budget is exceeded by more than 2 %%'
    )
    parser.add_argument('--update', action='store_true', help='write the figures as the new budgets for this Python')
    parser.add_argument('--functions', action='store_true', help='also count calls and bytecodes by function')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the figures to FILE')
    parser.add_argument('--budgets', type=Path, default=budgets.FILE, metavar='FILE', help='default %(default)s')
    parser.add_argument('--scale', type=float, default=1, help='factor for the number of requests; below 1 for a trial')
    parser.add_argument('--list', action='store_true', help='print the workloads and measure nothing')
    args = parser.parse_args(argv)
    if args.check and args.update:
        parser.error('--check compares with the budget and --update replaces it: choose one')
    if args.update and args.scale != 1:
        parser.error('--update needs the full number of requests: leave out --scale')
    refuse_unknown(parser, args.only, WORKLOADS)
    refuse_unknown(parser, args.peers, OTHERS)
    return args


def measure_all(chosen, peers, scale):
    """Return {workload: {peer: Figure}}, and {workload: {peer: error}} for failures."""
    figures, failures = {}, {}
    with tempfile.TemporaryDirectory(prefix='instructions-') as folder:
        for workload in chosen:
            for peer in peers:
                started = time.monotonic()
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
    """Return the figures of each workload as a table for the terminal."""
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
    """Print which budgets are exceeded or can be lowered; return whether any is exceeded."""
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
            print(f'NO BUDGET  {text}: only measured')
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
        print(f'NO BUDGET FOR THIS PYTHON ({budgets.build()}): only measured')
    exceeded = verdicts(ours, known)
    if args.functions:
        show_functions(chosen, args.scale)
    if args.json:
        args.json.write_text(json.dumps(report(figures, failures, known), indent=2) + '\n')
    if args.update:
        write_budgets(ours, known, args.budgets)
    return FAILED if failures or (args.check and exceeded) else 0


def show_functions(chosen, scale):
    """Print the calls and bytecodes of each workload on the reactor, by function."""
    with tempfile.TemporaryDirectory(prefix='instructions-') as folder:
        for workload in chosen:
            print()
            print(functions.table(workload.name, workload.what, functions.functions(workload, Path(folder), scale)))


def report(figures, failures, known):
    """Return the data that --json writes."""
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
    print(f'WROTE {path}: commit it, and explain in the commit message why the costs changed')


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
