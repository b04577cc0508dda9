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

from perf.common.machine import commit
from perf.common.server import PROJECT

MOST_ERRORS = 0.05  # share of the samples that may fail without a warning


def sampler(log: str) -> dict[str, Any]:
    """Return the facts from a recorder's log of one recording: samples, errors, and whether it fell behind."""
    if found := re.search(r'Samples: (\d+) Errors: (\d+)', log):  # py-spy
        samples, errors = map(int, found.groups())
    elif found := re.search(r'Captured (\d+) samples.*Error rate: ([\d.]+)', log, re.S):  # profiling.sampling
        samples = int(found[1])
        errors = round(samples * float(found[2]) / 100)
    elif found := re.search(r'\((\d+) samples\)', log):  # perf
        samples, errors = int(found[1]), 0
    else:
        samples = errors = None
    behind = 'behind in sampling' in log or bool(re.search(r'missed \d+ samples .*\((?:[5-9]|\d\d)[\d.]*%\)', log))
    return {'samples': samples, 'errors': errors, 'behind': behind or 'lost' in log.lower()}


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
    parser.add_argument('--recorder', required=True, help='its name and version')
    args = parser.parse_args()
    recordings = {log.stem: sampler(log.read_text()) for log in sorted(args.logs.glob('*.sampler'))}
    meta = {
        'target': args.target,
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'commit': commit(PROJECT),
        'python': platform.python_version(),
        'recorder': args.recorder,
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
