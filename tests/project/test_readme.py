"""The README: its programs and commands run, it is short, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.site.pages import Reader
from tests.site.pages import pages as all_pages

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


@pytest.mark.parametrize('code', [code for language, code in BLOCKS if language == 'sh'])
def test_a_command_of_the_readme_runs(code):
    run_shell(code)


def test_the_programs_of_the_readme_run_as_they_stand(tmp_path):
    assert {language for language, _ in BLOCKS} == {'python', 'sh'}
    reader = Reader(tmp_path)
    reader.read(CHECKOUT / 'README.md')
    assert reader.saved == {'echo.py', 'hello.py'}
    assert reader.printed == "received b'hello'\nclosed: None\n"


def test_the_readme_is_short():
    assert len(README.encode()) <= 8192


def test_the_echo_server_of_the_readme_has_at_most_twelve_lines():
    echo = next(code for _, code in BLOCKS if 'listen_tcp' in code)
    assert len(echo.strip().splitlines()) <= 12


def test_every_link_to_a_file_of_the_project_is_valid():
    targets = [target for _, target in LINKS] + re.findall(r'src(?:set)?="(?!https?:)([^"]+)"', README)
    assert targets and not [target for target in targets if not (CHECKOUT / target).exists()]


def test_the_newcomer_program_finds_its_commands_in_the_readme():
    from perf.visitors import newcomer

    for words in (
        ['reactor.demo'],
        ['7007', 'listen_tcp'],
        ['7007', 'connect_tcp'],
        ['serve.run'],
        ['pytest', 'venv'],
        ['profile.sh'],
        ['apt-get', 'haproxy'],
    ):
        assert newcomer.block(*words)


def test_the_measuring_commands_have_the_options_that_the_documents_show():
    pages = [README, (CHECKOUT / 'perf' / 'README.md').read_text(), *(path.read_text() for path in all_pages())]
    text = '\n'.join(pages)
    commands: dict[str, set[str]] = {}
    for module, rest in re.findall(r'`(?:sudo )?python\s+-m\s+(perf\.[a-z_.]+)([^`]*)`', text):
        commands.setdefault(module, set()).update(re.findall(r'--[a-z]+', rest))
    assert len(commands) == 9 and any(commands.values())
    for module, options in commands.items():
        command = [sys.executable, '-m', module, '--help']
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert not [option for option in options if option not in done.stdout], module
