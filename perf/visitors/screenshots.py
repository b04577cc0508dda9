"""Take the pictures of the live page that the README shows: `python -m perf.visitors.screenshots`.

The pictures show an experiment with 40,000 connections, some of which have been answered, in windows of three sizes.
They are taken from a real run. This takes a minute and two cores. Debian: chromium chromium-driver fonts-inter.
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
ANSWERING = 4.0  # seconds from the first answer to the first picture
ANSWERED = "[...document.querySelectorAll('h2')].some(each => each.textContent === 'Requests a second') && \
Number(document.querySelectorAll('.value span')[1].textContent.replaceAll(',', '')) > 100"
MOST_BYTES = 150_000  # largest size of a picture: the README is also read over mobile networks


def run(command: list[str], out: Path) -> int:
    """Start the experiment, take the pictures, and return the exit status."""
    experiment = subprocess.Popen(
        command, cwd=PERF.parent, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert experiment.stderr is not None
        found = re.match(r'live page at (\S+)', experiment.stderr.readline())
        assert found, 'the experiment did not print the address of its live page'
        with browser.Browser() as window:
            window.open(found[1])
            window.until(ANSWERED, 300)
            time.sleep(ANSWERING)
            for name, width, height, scheme in PICTURES:
                window.show(width, height, scheme)
                time.sleep(1.1)  # wait until the page is drawn at this size
                picture = window.picture()
                (out / f'{name}.png').write_bytes(picture)
                print(f'{out / name}.png: {len(picture):,} bytes')
                if len(picture) > MOST_BYTES:
                    print(f'the picture has more than {MOST_BYTES:,} bytes', file=sys.stderr)
                    return 1
    finally:
        experiment.send_signal(signal.SIGINT)
        experiment.communicate(timeout=30)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser('python -m perf.visitors.screenshots', description=__doc__.splitlines()[0])
    parser.add_argument('--connections', default='40000', help='connections of the experiment, default %(default)s')
    parser.add_argument('--rate', default='2000', help='new connections a second, default %(default)s')
    parser.add_argument('--delay', default='26', help='seconds until an answer, default %(default)s')
    parser.add_argument(
        '--out', type=Path, default=PERF / 'pictures', help='folder for the pictures, default %(default)s'
    )
    args = parser.parse_args()
    if browser.MISSING:
        print(f'perf.visitors.screenshots: {browser.MISSING}', file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'reactor.demo', '--dashboard', '0', '--connections', args.connections]
    return run([*command, '--rate', args.rate, '--delay', args.delay], args.out)


if __name__ == '__main__':
    sys.exit(main())
