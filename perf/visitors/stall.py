"""Make what docs/guide/slow.md shows, from a real run of its program: `python -m perf.visitors.stall`.

The program serves 2,000 connections, one of which asks for a report every half second. The outputs of the commands are
printed, and the file of the flight recorder is opened in speedscope for two pictures. This takes half a minute.
Debian: chromium chromium-driver fonts-noto-color-emoji. npm: speedscope.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import browser, speedscope

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / 'docs' / 'guide' / 'slow.md'
PORT = 7010  # of the program in the page
CONNECTIONS = 2000
RATE = 1500  # lines of all connections in a second
QUIET = 3.0  # seconds before the first report: the start of the program may be slow too
WIDTH, HEIGHT = 1280, 240
ROOM = 600  # height of the window while it is clicked: a click shows details over its lower half
TRACK = 153  # vertical place of the slices in the window, in pixels
ESCAPE = '\ue00c'


class Clients:
    """Connections that send lines, the first of which asks for the reports."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.socks = [socket.create_connection(('127.0.0.1', PORT)) for _ in range(CONNECTIONS)]
        for sock in self.socks:
            self.selector.register(sock, selectors.EVENT_READ)
        self.sent = 0
        self.line = time.monotonic()
        self.report = self.line + QUIET

    def go(self, done: Any) -> None:
        """Send lines and receive the replies until `done()` is true."""
        while not done():
            now = time.monotonic()
            if now >= self.line:
                self.line += 1 / RATE
                self.socks[1 + self.sent % (CONNECTIONS - 1)].sendall(b'hello, are you there?\n')
                self.sent += 1
            if now >= self.report:
                self.report += 0.5
                self.socks[0].sendall(b'report\n')
            for key, _ in self.selector.select(max(0.0, min(self.line, self.report) - now)):
                key.fileobj.recv(1000)  # type: ignore[union-attr]


def start(folder: Path, *command: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    return subprocess.Popen([sys.executable, *command], cwd=folder, text=True, env=environment, **more)


def run(folder: Path) -> Path:
    """Run the program with its clients, print the outputs, and return the path of the recorder's file."""
    (program,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (folder / 'stalls.py').write_text(program)
    server = start(folder, 'stalls.py')
    try:
        while not (folder / 'stalls.sock').exists():
            time.sleep(0.05)
        clients = Clients()
        until = time.monotonic() + QUIET + 5
        clients.go(lambda: time.monotonic() > until)
        for words in (['phases'], [], ['top', '--once']):
            command = start(folder, '-m', 'reactor.observe', 'stalls.sock', *words, stdout=subprocess.PIPE)
            clients.go(lambda: command.poll() is not None)  # noqa: B023
            print(
                f'\n$ python -m reactor.observe stalls.sock {" ".join(words)}\n{command.communicate()[0]}', flush=True
            )
    finally:
        server.kill()
        server.wait()
    return sorted((folder / 'traces').iterdir())[-1]


def take(trace: Path, folder: Path, out: Path) -> None:
    """Take pictures of the second stall in the file: its callback, and its turn with those before and after it."""
    slices = [event for event in json.loads(trace.read_text())['traceEvents'] if event['ph'] == 'X']
    with browser.Browser(*speedscope.FLAGS) as window:
        speedscope.show(window, trace, folder)
        for number, (name, smaller) in enumerate((('stall-callback', 0), ('stall-turn', 1)), 1):
            track = [each for each in slices if each['tid'] == number]
            first, last = track[0]['ts'], max(each['ts'] + each['dur'] for each in track)
            stall = [each for each in track if each['dur'] >= 80_000][1]
            window.show(WIDTH, ROOM)
            time.sleep(1)  # until the track is drawn
            window.double_click(round(WIDTH * (stall['ts'] + stall['dur'] / 2 - first) / (last - first)), TRACK)
            window.press(ESCAPE)  # hide the details, which would cover the lower part of the picture
            for _ in range(smaller):
                window.press('-')
            window.show(WIDTH, HEIGHT)
            time.sleep(1)
            (out / f'{name}.png').write_bytes(window.picture())
            print(f'{out / name}.png: {stall["dur"] / 1e3:.1f} ms, {json.dumps(stall["args"])}')
            window.press('n')  # the next track


def main() -> int:
    parser = argparse.ArgumentParser('python -m perf.visitors.stall', description=__doc__.splitlines()[0])
    out = PROJECT / 'docs' / 'pictures'
    parser.add_argument('--out', type=Path, default=out, help='folder for the pictures, default %(default)s')
    args = parser.parse_args()
    if missing := speedscope.missing():
        print(f'perf.visitors.stall: {missing}', file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        take(run(folder), folder, args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
