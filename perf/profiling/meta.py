"""Write meta.json, which says what was recorded and with which versions, so that two profiles can be distinguished.

An unknown fact is null, and never makes the run fail.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
from pathlib import Path
from typing import Any

from perf.common.machine import commit, first_line
from perf.common.server import PROJECT

MOST_ERRORS = 0.05  # share of the samples that may fail without a warning


def sampler(log: str) -> dict[str, Any]:
    """Return the facts from py-spy's log of one recording: samples, errors, and whether py-spy fell behind."""
    found = re.search(r'Samples: (\d+) Errors: (\d+)', log)
    samples, errors = map(int, found.groups()) if found else (None, None)
    return {'samples': samples, 'errors': errors, 'behind': 'behind in sampling' in log}


def warnings(recordings: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each reason to doubt a recording."""
    lines = []
    for name, found in recordings.items():
        if found['errors'] and found['errors'] > MOST_ERRORS * (found['samples'] + found['errors']):
            lines.append(f'{name}: {found["errors"]} samples failed, {found["samples"]} succeeded')
        if found['behind']:
            lines.append(f'{name}: the sampler could not keep up; give a lower --rate')
    return lines


def load_report(path: Path) -> dict[str, Any] | None:
    """Return the report that the load printed at its end, or None."""
    try:
        report: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.meta', description='Write meta.json into the folder of a profile.'
    )
    parser.add_argument('out', type=Path)
    parser.add_argument('--logs', type=Path, required=True, help='the folder with the output of sampler and load')
    parser.add_argument('--target', required=True)
    parser.add_argument('--seconds', type=int, required=True)
    parser.add_argument('--rate', type=int, required=True)
    parser.add_argument('--py-spy', required=True)
    args = parser.parse_args()
    recordings = {log.stem: sampler(log.read_text()) for log in sorted(args.logs.glob('*.sampler'))}
    meta = {
        'target': args.target,
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'commit': commit(PROJECT),
        'python': platform.python_version(),
        'py_spy': first_line(args.py_spy, '--version'),
        'system': platform.platform(),
        'seconds': args.seconds,
        'rate': args.rate,
        'recordings': recordings,
        'load': load_report(args.logs / 'load'),
        'warnings': warnings(recordings),
    }
    (args.out / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')


if __name__ == '__main__':
    main()
