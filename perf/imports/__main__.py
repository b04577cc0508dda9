"""Measure how long an import of the reactor takes, as the median of the differences in pairs of whole processes.

    python -m perf.imports                measure `import reactor`, and the first use of a name
    python -m perf.imports --pairs 100    measure more pairs

Each pair runs two processes: one imports only what every such library needs from the standard library (BASE), and the
other runs the measured statement. The first one of a pair is now the one, now the other. A negative difference means
that the statement takes less time than BASE. The bytecode of all modules is written before the first pair.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from perf.common.server import PROJECT

BASE = 'import selectors, socket, heapq, signal'
STATEMENTS = 'import reactor', 'from reactor import Reactor', 'import asyncio'


def environment():
    """Return the environment of the measured processes: they import this checkout, and may write bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    return {**kept, 'PYTHONPATH': str(PROJECT)}


def process_time(statement):
    """Run a statement in a new process, and return how many milliseconds it took from start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, '-c', statement], env=environment(), check=True)
    return (time.perf_counter() - started) * 1000


def differences(statement, pairs, measure=process_time):
    """Return how much longer the statement took than BASE, in milliseconds, for each pair."""
    found = []
    for number in range(pairs):
        order = (BASE, statement) if number % 2 else (statement, BASE)
        took = {each: measure(each) for each in order}
        found.append(took[statement] - took[BASE])
    return found


def main(argv=None):
    parser = argparse.ArgumentParser('python -m perf.imports', description='Measure how long imports take.')
    parser.add_argument('--pairs', type=int, default=30, metavar='N', help='pairs of processes, default %(default)s')
    args = parser.parse_args(argv)
    if args.pairs < 2:
        parser.error('--pairs must be at least 2')
    print(f'milliseconds more than `{BASE}`, in {args.pairs} pairs:\n')
    print(f'{"":<28}{"median":>8}   middle half')
    for statement in STATEMENTS:
        process_time(statement)
        low, middle, high = statistics.quantiles(differences(statement, args.pairs), n=4)
        print(f'{statement:<28}{middle:>8.1f}   {low:.1f} to {high:.1f}', flush=True)


if __name__ == '__main__':
    main()
