"""Run the programs of a page of the documentation, as a reader does: from top to bottom, each as it stands.

The rules for a page, which `docs/README.md` explains to its writers:

- A block of Python is a whole program. If the text after it begins with "Save this as `NAME`", that is its file;
  otherwise it is run once and forgotten. All files of a page are in one folder. If a paragraph begins with "This page
  continues [...](FILE.md)", the files of that page are there, too.
- A program that listens on a port 70xx of 127.0.0.1 is a server. It runs while the rest of the page is run, and then
  must end at SIGINT. If a later program listens on the same port, the earlier one is ended first. No two pages use the
  same port. If the program listens in a module that it imports, a comment says "# listens on 127.0.0.1:70xx".
- A file `test_NAME.py` is run by pytest and must pass, unless the paragraph after it says that it fails.
- A file that a later program imports, and that is no server, is not run by itself, unless the page says what it prints.
- Any other program must end with status 0 within 30 seconds.
- A block of `text` after a line that ends with "prints:" must be what the last program has printed; `...` stands for
  anything within a line. After a line that ends with "the server prints:", it must be what the last server has
  printed.
- A block of `sh` after a line that ends with "again:" runs its saved file again.
- A command in a block of `sh` runs a saved file, or is in KNOWN, where it says which test runs it. `openssl req` is
  run, because later programs need the certificate.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / 'docs'
BLOCK = re.compile(r'^```(\w*)[^\n]*\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CONTINUES = re.compile(r'^This page continues \[[^\]]*\]\(([\w./-]+)\)', re.MULTILINE)
SAVE = re.compile(r'\s*Save this as `([\w./]+)`')
PORT = re.compile(r"127\.0\.0\.1(?:', |:)(70\d\d)")
LISTENS = re.compile(r'\blisten_tcp\(|\bserve\.run\(|listen=|\bcreate_server\(|# listens on ')
OTHER_LANGUAGES = {'', 'ini', 'json', 'yaml', 'toml', 'text', 'dockerfile', 'nginx', 'haproxy'}
LIMIT = 30  # seconds

# Commands that are not run here: beginnings, and who runs them.
KNOWN = {
    'apt-get install ': 'shown only; .ci/run installs the same packages',
    'sudo ': 'shown only',
    'python3 -m venv ': '.ci/run',
    '.venv/bin/': '.ci/run, test_readme.py',
    'nc ': 'the default client of this module talks to the server instead',
    'curl ': 'the tests of the example that the page names',
    'kill ': 'the tests of the example that the page names',
    'python3 -m reactor.demo': 'tests/demo, test_readme.py',
    'python3 -m reactor.observe': 'tests/observe',
    'python -m reactor.observe': 'tests/observe',
    'python3 -m reactor.testing': 'tests/testing',
    'python -m reactor.testing': 'tests/testing',
    'perf/profile.sh': 'tests/perf',
    'python -m perf.': 'tests/perf',
    'python3 -m perf.': 'tests/perf',
    'python3 examples/': 'tests/examples',
    'export PYTHONPATH=': 'shown only',
    'PYTHONPATH=. python3 examples/': 'tests/examples, tests/recipes',
    'haproxy -f ': 'tests/serve/test_haproxy.py',
    "echo 'set server ": 'tests/serve/test_haproxy.py',
    "echo 'show stat' ": 'tests/serve/test_haproxy.py',
    'envoy -c ': 'tests/serve/test_envoy.py',
    'nginx ': 'tests/serve/test_nginx.py',
    'mkdir -p ': 'shown only',
    'pip install ': 'shown only',
    'systemd-socket-activate ': 'tests/examples/test_service.py',
    'promtool ': 'tests/examples/test_alerts.py',
    'prometheus ': 'tests/examples/test_alerts.py',
    'cp ': 'shown only',
    'openssl ': 'the tests of TLS make certificates with the same command',
    'git clone ': 'shown only',
    'systemctl ': 'shown only',
    'kubectl ': 'shown only',
    'docker ': 'shown only',
}


def pages() -> list[Path]:
    """Return all pages, those in folders included."""
    return sorted(path for path in DOCS.rglob('*.md') if path.name != 'README.md')


def blocks(text: str) -> list[tuple[str, str, str, str]]:
    """Return (language, content, line before, text after) of each block."""
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()].rstrip().rpartition('\n')[2]
        found.append((match[1], match[2], before, text[match.end() :]))
    return found


class Reader:
    """A reader who types what a page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: set[str] = set()
        self.printed = ''
        self.log = folder / 'no server'  # what the last server prints
        self.servers: dict[str, subprocess.Popen[str]] = {}
        path = os.pathsep.join([str(folder), str(CHECKOUT)])
        self.environment = {**os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'}
        (folder / 'setup.cfg').write_text('[tool:pytest]\naddopts = -p no:cacheprovider\n')

    def read(self, page: Path) -> None:
        self.save_earlier(page)
        try:
            for language, content, before, after in blocks(page.read_text()):
                if language == 'python':
                    self.run(content, after)
                elif language == 'sh':
                    self.type(content, before.endswith('again:'))
                elif language not in OTHER_LANGUAGES and not language.startswith('{'):
                    raise AssertionError(f'{page.name}: nobody knows how to run a block of {language}')
                if language == 'text' and before.endswith('the server prints:'):
                    self.compare_log(content)
                elif language == 'text' and before.endswith('prints:'):
                    self.compare(content)
        finally:
            for port in list(self.servers):
                self.end(port)

    def save_earlier(self, page: Path) -> None:
        earlier = CONTINUES.search(page.read_text())
        if earlier is not None:
            self.save_earlier(page.parent / earlier[1])
            for language, content, _, after in blocks((page.parent / earlier[1]).read_text()):
                save = SAVE.match(after) if language == 'python' else None
                if save is not None:
                    self.saved.add(save[1])
                    (self.folder / save[1]).write_text(content)

    def run(self, code: str, after: str) -> None:
        save = SAVE.match(after)
        name = save[1] if save else 'unnamed.py'
        self.saved.add(name)
        path = self.folder / name
        path.write_text(code)
        port = PORT.search(code)
        if Path(name).name.startswith('test_'):
            self.test(path, fails=' fails' in after.strip().partition('\n\n')[0])
        elif (
            re.search(rf'^(?:from|import) {path.stem}\b', after, re.MULTILINE)
            and not LISTENS.search(code)
            and 'prints:' not in after.partition('```')[0]
        ):
            compile(code, name, 'exec')  # a module that later programs import
        elif port and LISTENS.search(code):
            self.start(path, port[1])
        else:
            self.run_to_its_end(name)

    def run_to_its_end(self, name: str) -> None:
        command = [sys.executable, '-W', 'error', name]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, f'{name}: {done.stdout}{done.stderr}'
        self.printed = done.stdout + done.stderr

    def test(self, path: Path, fails: bool) -> None:
        command = [sys.executable, '-m', 'pytest', '-q', '-n', '0', path.name]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=2 * LIMIT
        )
        assert (done.returncode == 1) if fails else (done.returncode == 0), done.stdout + done.stderr
        self.printed = done.stdout

    def start(self, path: Path, port: str) -> None:
        if port in self.servers:
            self.end(port)
        with socket.socket() as sock:
            assert sock.connect_ex(('127.0.0.1', int(port))), f'another program listens on port {port}'
        self.log = self.folder / f'{path.name}.log'
        with self.log.open('w') as log:
            process = subprocess.Popen(
                [sys.executable, '-W', 'error', path.name],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        self.servers[port] = process
        until = time.monotonic() + LIMIT
        while True:
            assert process.poll() is None, (self.folder / f'{path.name}.log').read_text()
            with socket.socket() as sock:
                if not sock.connect_ex(('127.0.0.1', int(port))) and process.poll() is None:
                    return
            assert time.monotonic() < until, f'{path.name} does not listen on {port}'
            time.sleep(0.05)

    def end(self, port: str) -> None:
        process = self.servers.pop(port)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(LIMIT)
        finally:
            process.kill()
        log = (self.folder / f'{process.args[-1]}.log').read_text()  # type: ignore[index]
        allowed = {0, -signal.SIGINT, 130}
        assert process.returncode in allowed, log
        assert (
            'Traceback' not in log.replace('Traceback (most recent call last):\n', 'Traceback', 1) or 'Keyboard' in log
        ), log

    def type(self, commands: str, again: bool) -> None:
        for line in commands.replace('\\\n', '').splitlines():
            words = line.partition('#')[0].split()
            if words[:2] == ['openssl', 'req']:
                subprocess.run(line, shell=True, cwd=self.folder, capture_output=True, check=True, timeout=LIMIT)
                continue
            if not words or any(line.startswith(known) for known in KNOWN):
                continue
            saved = words[0] == 'python3' and len(words) > 1 and words[1] in self.saved
            assert saved, f'nobody knows how to run the command {line!r}; see tests/site/pages.py'
            if again:
                self.run_to_its_end(words[1])

    def compare_log(self, expected: str) -> None:
        until = time.monotonic() + LIMIT / 3
        while True:
            self.printed = self.log.read_text()
            try:
                return self.compare(expected)
            except AssertionError:  # the server may need a moment
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def compare(self, expected: str) -> None:
        pattern = '.*'.join(map(re.escape, expected.rstrip().split('...')))
        assert re.search(pattern, self.printed), f'expected:\n{expected}\nprinted:\n{self.printed}'


def ports(page: Path) -> set[str]:
    """Return the ports on which the programs of a page listen."""
    return {
        found for language, code, *_ in blocks(page.read_text()) if language == 'python' for found in PORT.findall(code)
    }
