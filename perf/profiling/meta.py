"""What was measured, with what: everything needed to tell two profiles apart, in meta.json.

Owns the questions to git, to the sampler's log and to the load's report. The rule: what cannot be found out is null,
and never fails the run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

MOST_ERRORS = 0.05  # of the samples


def first_line(*command: str) -> str | None:
    """The first line that a command prints, None when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def commit() -> str | None:
    """The checkout's commit, with a plus when files differ from it."""
    found = first_line('git', 'rev-parse', '--short=12', 'HEAD')
    return found and found + ('+' if first_line('git', 'status', '--porcelain', '--untracked-files=no') else '')


def sampler(log: str) -> dict[str, Any]:
    """What py-spy said of one recording."""
    found = re.search(r'Samples: (\d+) Errors: (\d+)', log)
    samples, errors = map(int, found.groups()) if found else (None, None)
    return {'samples': samples, 'errors': errors, 'behind': 'behind in sampling' in log}


def warnings(recordings: dict[str, dict[str, Any]]) -> list[str]:
    """What makes a recording doubtful."""
    lines = []
    for name, found in recordings.items():
        if found['errors'] and found['errors'] > MOST_ERRORS * (found['samples'] + found['errors']):
            lines.append(f'{name}: {found["errors"]} samples failed, {found["samples"]} did not')
        if found['behind']:
            lines.append(f'{name}: the sampler could not keep up; give a lower --rate')
    return lines


def load_report(path: Path) -> dict[str, Any] | None:
    """The load's last line, None when there was none."""
    try:
        report: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description='Write meta.json into the folder of a profile.')
    parser.add_argument('out', type=Path)
    parser.add_argument('--logs', type=Path, required=True, help='the folder with what sampler and load have said')
    parser.add_argument('--target', required=True)
    parser.add_argument('--seconds', type=int, required=True)
    parser.add_argument('--rate', type=int, required=True)
    parser.add_argument('--py-spy', required=True)
    args = parser.parse_args()
    recordings = {log.stem: sampler(log.read_text()) for log in sorted(args.logs.glob('*.sampler'))}
    meta = {
        'target': args.target,
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'commit': commit(),
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
