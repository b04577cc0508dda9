"""Takes the pictures of the live page that the README shows: `python -m perf.visitors.screenshots`.

Owns the experiment that is seen on them, 40,000 connections in the middle of being answered, and the windows in which
it is seen. The rule: what is on the pictures has happened; nothing is drawn by hand. A minute, and two cores for it.
Debian: chromium chromium-driver fonts-inter.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import browser

PERF = Path(__file__).parents[1]
PICTURES = [  # name, width, height, colours
    ('live-light', 1120, 1090, 'light'),
    ('live-dark', 1120, 1090, 'dark'),
    ('live-phone', 375, 812, 'dark'),
]
ANSWERING = 4.0  # seconds after the first answer at which the pictures are taken
ANSWERED = "[...document.querySelectorAll('h2')].some(each => each.textContent === 'Requests a second') && \
Number(document.querySelectorAll('.value span')[1].textContent.replaceAll(',', '')) > 100"
MOST_BYTES = 150_000  # of a picture: people load the README on the road, too


def run(command: list[str], out: Path) -> int:
    """Take them; returns the exit status."""
    experiment = subprocess.Popen(
        command, cwd=PERF.parent, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert experiment.stderr is not None
        found = re.match(r'live page at (\S+)', experiment.stderr.readline())
        assert found, 'the experiment did not start'
        with browser.Browser() as window:
            window.open(found[1])
            window.until(ANSWERED, 300)
            time.sleep(ANSWERING)  # of the experiment, not of ours: there is nothing to wait for
            for name, width, height, scheme in PICTURES:
                window.show(width, height, scheme)
                time.sleep(1.1)  # until it was drawn in this size
                picture = window.picture()
                (out / f'{name}.png').write_bytes(picture)
                print(f'{out / name}.png: {len(picture):,} bytes')
                if len(picture) > MOST_BYTES:
                    print(f'more than {MOST_BYTES:,} bytes', file=sys.stderr)
                    return 1
    finally:
        experiment.send_signal(signal.SIGINT)
        experiment.communicate(timeout=30)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--connections', default='40000')
    parser.add_argument('--rate', default='2000')
    parser.add_argument('--delay', default='26', help='seconds to the first answer')
    parser.add_argument('--out', type=Path, default=PERF / 'pictures', help='folder for the pictures')
    args = parser.parse_args()
    if browser.MISSING:
        print(f'screenshots.py: {browser.MISSING}', file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'reactor.demo', '--dashboard', '0', '--connections', args.connections]
    return run([*command, '--rate', args.rate, '--delay', args.delay], args.out)


if __name__ == '__main__':
    sys.exit(main())
