"""Measure the reactor under load and faults, and compare the results with what is promised: `python -m perf.faults`.

The result of a case is written before the next case begins, so the command can be interrupted at any time, and the same
command resumes the run. The exit status is 1 when a case missed a goal, failed, or could not be run.
"""

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path

from perf.common import machine
from perf.common.command_line import names, refuse_unknown
from perf.common.progress import Progress, duration
from perf.common.server import PROJECT

from .case import Run
from .cases import BY_NAME, CASES
from .results import FAILED, HELD, MISSED, NOT_RUN, Results, measured, table

QUICK = 0.02  # factor for all counts and times


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        'python -m perf.faults', description='Compare the reactor under load and faults with what is promised.'
    )
    parser.add_argument('--only', type=names, metavar='NAME[,..]', help='choose from ' + ', '.join(BY_NAME))
    parser.add_argument('--quick', action='store_true', help=f'a trial: counts and times multiplied by {QUICK:g}')
    parser.add_argument('--again', action='store_true', help='repeat cases that were already measured at this commit')
    parser.add_argument('--list', action='store_true', help='print the cases and how long each takes; measure nothing')
    out = PROJECT / 'perf' / 'out' / 'faults'
    parser.add_argument('--out', type=Path, default=out, metavar='DIR', help='results folder, default %(default)s')
    args = parser.parse_args(argv)
    refuse_unknown(parser, args.only, BY_NAME)
    return args


def measure(case, run):
    """Measure one case; return (outcome, figures by name, goals and whether each was met, error or None)."""
    goals = [{'text': goal.text, 'held': None} for goal in case.goals]
    if reason := case.missing():
        return NOT_RUN, {}, goals, reason
    try:
        found = case.measure(run)
        for goal, row in zip(case.goals, goals, strict=True):
            row['held'] = bool(goal.check(found))
    except Exception as exc:  # any exception: the other cases still have to be measured
        return FAILED, {}, goals, f'{type(exc).__name__}: {exc}'
    return HELD if all(goal['held'] for goal in goals) else MISSED, found, goals, None


def result_of(case, run, commit):
    """Measure one case; return the line for results.jsonl."""
    began, others = time.monotonic(), machine.OtherWork()
    outcome, found, goals, error = measure(case, run)
    return {
        'case': case.name,
        'title': case.title,
        'commit': commit,
        'scale': run.scale,
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'python': platform.python_version(),
        'machine': machine.description(),
        'seconds': round(time.monotonic() - began, 1),
        'others': round(others.cores(), 2),
        'outcome': outcome,
        'measured': found,
        'goals': goals,
        'error': error,
    }


def run_all(chosen, run, progress, results, commit, again):
    """Measure the chosen cases; skip those that were already measured at this commit, unless `again` is set."""
    for case in chosen:
        if not again and results.has(case.name, run.scale, commit):
            progress.say(f'{case.name:<4} already measured; --again repeats it')
            continue
        progress.begin(f'{case.name:<4} {case.title}', case.seconds * run.scale)
        result = result_of(case, run, commit)
        results.add(result)
        progress.say(f'{case.name:<4} {result["outcome"].upper()} in {duration(result["seconds"])}: {measured(result)}')
        for goal in result['goals']:
            if goal['held'] is False:
                progress.say(f'     missed: {goal["text"]}')


def write_table(args, scale, commit, results):
    """Write the table; return (its rows, its text, its path)."""
    facts = machine.description()
    head = {
        'commit': commit,
        'Python': platform.python_version(),
        'kernel': platform.release(),
        'cores': facts['cores'],
        'memory (MB)': facts['memory_mb'],
        'processor': facts['processor'],
        'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    latest = results.latest(scale)
    rows = [latest[case.name] for case in CASES if case.name in latest]
    text = table(rows, head)
    path = args.out / ('faults.md' if scale == 1 else 'faults-quick.md')
    path.write_text(text)
    return rows, text, path


def main(argv=None):
    args = arguments(argv)
    chosen = [BY_NAME[name] for name in args.only] if args.only else CASES
    if args.list:
        for case in chosen:
            print(f'{case.name:<4} {duration(case.seconds):>12}  {case.title}')
        return 0
    progress = Progress()
    machine.raise_descriptor_limit()
    commit = machine.commit(PROJECT) or 'unknown+'
    run = Run(QUICK if args.quick else 1.0, progress.update)
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / 'results.jsonl')
    progress.say(f'{len(chosen)} cases, about {duration(sum(case.seconds for case in chosen) * run.scale)}')
    try:
        run_all(chosen, run, progress, results, commit, args.again)
    finally:
        rows, text, path = write_table(args, run.scale, commit, results)
    print(text)
    progress.say(f'wrote {path}')
    wanted = {case.name for case in chosen}
    bad = [f'{row["case"]} {row["outcome"]}' for row in rows if row['case'] in wanted and row['outcome'] != HELD]
    if bad:
        progress.say('NOT ALL HELD: ' + ', '.join(bad))
    return 1 if bad else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print('interrupted; finished cases are kept, and the same command resumes the run', file=sys.stderr)
        sys.exit(130)
