"""Run every code block of the README; a block of an unknown kind is a failure."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import reactor
from tests.api.test_facade import PARTS  # internal attributes

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / 'README.md').read_text()
LINKS = re.findall(r'\[([^]]+)\]\((?!https?:|#)([^)#]+)', README)
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)


def run_shell(code):
    if 'pytest' in code:  # the tests would run themselves again and again, so only compare the command with .ci/run
        assert (
            code.strip().replace('.venv/bin/pip install -e', '.venv/bin/pip install -q -e')
            in (CHECKOUT / '.ci' / 'run').read_text()
        )
        return
    if 'haproxy' in code:  # test_haproxy.py runs this block; here, check that the programs and their options exist
        for line in re.findall(r'^python3 (.*) &$', code, re.MULTILINE):
            path, *options = shlex.split(line)
            command = [sys.executable, path, '--help']
            done = subprocess.run(
                command, cwd=CHECKOUT, env={**os.environ, 'PYTHONPATH': '.'}, capture_output=True, text=True, timeout=30
            )
            assert all(word in done.stdout for word in options if word.startswith('--')), done.stderr
        assert (CHECKOUT / re.search(r'haproxy -f (\S+)', code)[1]).exists()
        return
    words = shlex.split(code)
    if words[0] == 'perf/profile.sh':  # the script has its own tests; here, check that it has these options
        done = subprocess.run(['bash', words[0], '--help'], cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and all(word in done.stdout for word in words[1:] if word.startswith('--'))
        return
    assert words in (['python3', '-m', 'reactor.demo'], ['python3', '-m', 'reactor.demo', '--dashboard'])
    port = ['0'] if words[-1] == '--dashboard' else []  # the default port may be in use
    small = [sys.executable, *words[1:], *port, '--connections', '200', '--delay', '0.2']
    with subprocess.Popen(small, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if port:
            assert any('the live page stays at' in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert '200 of 200 connections' in printed


def named_files():
    """Return (name, code) of each Python block. The name is None if the text after it does not say how to save it."""
    found = []
    for number, (language, code) in enumerate(BLOCKS, 1):
        if language == 'python':
            begin = README.index(code) + len(code)
            end = README.index(BLOCKS[number][1]) if number < len(BLOCKS) else len(README)
            name = re.match(r'```\n+Save this as `(\w+\.py)`', README[begin:end])
            found.append((name and name[1], code))
    return found


def run_python(code):
    """Save the block and those before it, each as the text says and exactly as it stands, and run this one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(CHECKOUT / 'setup.cfg', folder)  # the options of pytest in the checkout
        for file, earlier in named_files():
            path = folder / (file or 'unnamed.py')
            path.write_text(earlier)
            if earlier == code:
                break
        environment = {**os.environ, 'PYTHONPATH': str(CHECKOUT)}
        if path.name.startswith('test_'):
            run_test(path, environment)
        elif port := re.search(r'127\.0\.0\.1(?:\', |:)(70\d\d)', code):
            run_server(path, environment, int(port[1]))
        else:
            command = [sys.executable, '-W', 'error', path.name]
            subprocess.run(command, cwd=folder, env=environment, check=True, timeout=30)


def run_test(path, environment):
    command = [sys.executable, *f'-m pytest {path.name}'.split()]
    assert '.venv/bin/python ' + ' '.join(command[1:]) in README
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=60)
    assert '1 passed' in done.stdout, done.stdout + done.stderr


def run_server(path, environment, port):
    """Run a server, and talk to it with the README's command for those who have no `nc`."""
    assert f'`python3 {path.name}`' in README
    client = re.search(r'`python3 -c "(import socket; .*?)"`', README.replace('\n', ' '))[1].replace('7007', str(port))
    with socket.socket() as sock:
        if not sock.connect_ex(('127.0.0.1', port)):
            pytest.skip(f'NOT TESTED: another program listens on port {port}')
    process = subprocess.Popen([sys.executable, '-W', 'error', path.name], cwd=path.parent, env=environment)
    try:
        deadline = time.monotonic() + 10
        while True:
            done = subprocess.run([sys.executable, '-c', client], capture_output=True, text=True, timeout=30)
            if done.returncode == 0:
                break
            assert 'ConnectionRefusedError' in done.stderr and time.monotonic() < deadline and process.poll() is None
        assert done.stdout == "b'hi'\n"
    finally:
        process.terminate()
        process.wait(10)


RUNNERS = {'sh': run_shell, 'python': run_python}


@pytest.mark.parametrize('language, code', BLOCKS, ids=[code.split('\n')[0] for _, code in BLOCKS])
def test_a_code_block_of_the_readme_runs(language, code):
    RUNNERS[language](code)


def test_a_file_that_a_block_imports_has_been_saved_before():
    saved = []
    for name, code in named_files():
        for module in re.findall(r'^(?:from|import) (\w+)', code, re.MULTILINE):
            assert module in ('reactor', 'sys') or f'{module}.py' in saved, module
        saved.append(name)
    assert saved == ['echo.py', 'workers.py', None, 'test_echo.py']


def test_the_echo_server_of_the_readme_has_at_most_twelve_lines():
    echo = next(code for _, code in BLOCKS if '7007' in code)
    assert len(echo.strip().splitlines()) <= 12


def test_the_readme_names_everything_public():
    for name in reactor.__all__:
        if name not in ('READ', 'WRITE', 'Listener', 'Stats', 'Stream'):
            assert f'`{name}' in README or f'reactor.{name}(' in README or f'**{name}**' in README, name
    for name in set(dir(reactor.Reactor)) - PARTS:
        if not name.startswith('_'):
            assert name in README, name


def test_every_link_to_a_file_of_the_project_is_valid():
    targets = [target for _, target in LINKS] + re.findall(r'src(?:set)?="(?!https?:)([^"]+)"', README)
    assert targets and not [target for target in targets if not (CHECKOUT / target).exists()]


def test_every_test_named_in_the_readme_exists():
    named = [(text, target) for text, target in LINKS if text.startswith('test_') and not text.endswith('.py')]
    assert named
    texts = {target: (CHECKOUT / target).read_text() if (CHECKOUT / target).exists() else '' for _, target in named}
    assert not [f'{target}::{name}' for name, target in named if f'\ndef {name}(' not in texts[target]]


def test_all_rows_of_a_table_in_the_readme_have_the_same_number_of_cells():
    tables = re.findall(r'(?:^\|.*\n)+', README, re.MULTILINE)
    assert tables
    for table in tables:
        rows = table.splitlines()
        assert {row.count('|') for row in rows} == {rows[0].count('|')}, rows[0]


def test_the_comparison_uses_all_of_its_footnotes_and_no_others():
    table = re.search(r'^\| \| reactor \| asyncio .*?\n\n(.*?)\n\n', README, re.MULTILINE | re.DOTALL)
    numbers = re.findall(r'(?:^| · )(\d+) ', table[1].replace('\n', ' '))
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert set(re.findall(r'\| p (\d+)', table[0])) == set(numbers)
    assert '| p |' not in table[0]


def test_the_newcomer_program_finds_its_commands_in_the_readme():
    from perf.visitors import newcomer

    for words in (
        ['reactor.demo'],
        ['7007'],
        ['serve.run'],
        ['pytest', 'venv'],
        ['profile.sh'],
        ['apt-get', 'haproxy'],
    ):
        assert newcomer.block(*words)
    assert re.search(r'`(python3 -c "import socket; .*?")`', README.replace('\n', ' '))


def test_the_measuring_commands_have_the_options_that_the_documents_show():
    text = README + (CHECKOUT / 'perf' / 'README.md').read_text()
    commands: dict[str, set[str]] = {}
    for module, rest in re.findall(r'`(?:sudo )?python\s+-m\s+(perf\.[a-z_.]+)([^`]*)`', text):
        commands.setdefault(module, set()).update(re.findall(r'--[a-z]+', rest))
    assert len(commands) == 9 and any(commands.values())
    for module, options in commands.items():
        command = [sys.executable, '-m', module, '--help']
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert not [option for option in options if option not in done.stdout], module
