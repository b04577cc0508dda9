"""Log lines: text and JSON for any record, the slot and the process in each line, and a standard error that fails."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import serve
from reactor.serve.logs import PATIENCE, StandardError, log_to_standard_error, log_uncaught

fcntl = pytest.importorskip('fcntl', reason='NOT TESTED: the logs of workers, which need POSIX')

PROJECT = Path(__file__).parents[2]
PROGRAM = PROJECT / 'tests' / 'helpers' / 'log_program.py'
WHEN = 1784889296.0625  # 2026-07-24T10:34:56.0625Z
UTC = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z'


def record(message='hello', *args: Any, exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger('app').makeRecord('app', 30, 'app.py', 1, message, args, exc_info, extra=extra)
    made.created = WHEN
    made.process = 4711
    return made


def raised(exc: BaseException) -> Any:
    try:
        raise exc
    except BaseException:
        return sys.exc_info()


# -- formatters


def test_a_text_line_has_time_level_worker_process_and_logger():
    assert (
        serve.TextFormatter(3).format(record('%s of %d', 'one', 2))
        == '2026-07-24T10:34:56.062Z WARNING worker 3 (pid 4711) app: one of 2'
    )
    assert serve.TextFormatter('parent').format(record()).endswith(' WARNING parent (pid 4711) app: hello')
    assert serve.TextFormatter().format(record()).endswith(' WARNING pid 4711 app: hello')


@pytest.mark.parametrize(
    ('zone', 'shown'),
    [
        ('UTC0', '2026-07-24T10:34:56.062+00:00'),
        ('IST-5:30', '2026-07-24T16:04:56.062+05:30'),
        ('NST3:30', '2026-07-24T07:04:56.062-03:30'),
    ],
)
def test_local_time_has_its_offset(monkeypatch, zone, shown):
    monkeypatch.setenv('TZ', zone)
    time.tzset()
    try:
        assert serve.TextFormatter(0, utc=False).format(record()).startswith(f'{shown} WARNING worker 0 ')
    finally:
        monkeypatch.undo()
        time.tzset()


def test_only_the_first_line_of_a_record_begins_in_the_first_column():
    forged = '2026-07-24T10:34:57.000Z CRITICAL parent (pid 1) app: forged'
    text = serve.TextFormatter(0).format(record(f'one\n{forged}\r{forged}', exc_info=raised(ValueError(f'\n{forged}'))))
    first, *more = text.splitlines()
    assert first.endswith('app: one') and more and all(line.startswith('    ') for line in more)
    assert 'Traceback (most recent call last):' in text and 'ValueError: ' in text


def test_text_has_no_character_that_controls_a_terminal_or_cannot_be_encoded():
    text = serve.TextFormatter(0).format(record('\x1b[2J \x00 \x7f \x9b \u2028 \u202e \udc80 ü\t€'))
    assert text.endswith(r': \x1b[2J \x00 \x7f \x9b \u2028 \u202e \udc80 ü' + '\t€')
    text.encode()


def test_a_json_line_has_all_fields_and_the_extra_values():
    line = serve.JSONFormatter(3).format(record('%s of %d', 'one', 2, size=5, peer=('::1', 8), tags={'a': [1.5, None]}))
    assert json.loads(line) == {
        'time': '2026-07-24T10:34:56.062Z', 'level': 'WARNING', 'logger': 'app', 'message': 'one of 2', 'pid': 4711,
        'worker': 3, 'size': 5, 'peer': ['::1', 8], 'tags': {'a': [1.5, None]},
    }  # fmt: skip
    assert json.loads(serve.JSONFormatter('parent').format(record()))['worker'] == 'parent'
    assert json.loads(serve.JSONFormatter().format(record()))['worker'] is None


def test_a_json_line_has_the_traceback_as_a_string():
    fields = json.loads(serve.JSONFormatter(0).format(record(exc_info=raised(ValueError('two\nlines')))))
    assert fields['exception'].startswith('Traceback (most recent call last):\n')
    assert fields['exception'].endswith('ValueError: two\nlines')
    assert 'exception' not in json.loads(serve.JSONFormatter(0).format(record(exc_info=(None, None, None))))


def test_an_extra_value_does_not_replace_a_field():
    fields = json.loads(serve.JSONFormatter(0).format(record(worker=7, time='noon', exception=1)))
    assert (fields['worker'], fields['time'][:4]) == (0, '2026')
    assert (fields['extra_worker'], fields['extra_time'], fields['extra_exception']) == (7, 'noon', 1)


class Hostile:
    def __repr__(self) -> str:
        raise OSError('no repr')

    __str__ = __repr__


class HostileDict(dict):
    def items(self):
        raise OSError('no items')


def circular() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


HOSTILE = [
    Hostile(), [Hostile()], {Hostile(): 1}, {(1, 2): 3}, HostileDict(a=1), {'a', 'b'}, b'\xff\n', float('nan'),
    [float('inf')], 10**5000, circular(), deep(), object(), ValueError('x'), Path('/'), '\ud800', '\udc80\n',
    '\x00\x1b\x7f\x85\u2028\u2029', '\\\ud800', {'\udfff': '\udfff'}, 1j, type, Ellipsis,
]  # fmt: skip


@pytest.mark.parametrize('value', HOSTILE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize('formatter', [serve.TextFormatter(1), serve.JSONFormatter(1)], ids=['text', 'json'])
def test_no_value_makes_a_formatter_raise_or_break_the_line(formatter, value):
    strange = record(value, value)
    strange.args = value
    named = record()
    named.name = named.levelname = value
    late = record()
    late.created = value
    ended = record(exc_info=raised(ValueError(value)))
    for one in record('%s', value), record('%d', value), strange, record(extra=value), named, late, ended:
        line = formatter.format(one)
        line.encode()
        if isinstance(formatter, serve.JSONFormatter):
            assert line.isascii() and line.isprintable()
            assert_decodes(line)
        else:
            assert all(part.startswith('    ') for part in line.split('\n')[1:]) and '\r' not in line


def assert_decodes(line: str) -> Any:
    """Parse JSON as a strict parser does: no NaN, and no half of a surrogate pair."""
    fields = json.loads(line, parse_constant=pytest.fail, parse_int=str)
    json.dumps(fields, ensure_ascii=False).encode()
    return fields


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner) | st.tuples(inner),
    max_leaves=8,
)


@given(message=st.text(st.characters()), value=VALUES)
def test_any_text_survives_json_and_stays_on_one_line(message, value):
    line = serve.JSONFormatter(0).format(record('%s', message, value=value))
    assert line.isascii() and line.isprintable()
    fields = assert_decodes(line)
    assert 'value' in fields
    escaped = re.sub('[\ud800-\udfff]', lambda match: f'\\u{ord(match[0]):04x}', message)
    assert fields['message'] == escaped


def test_arguments_that_do_not_fit_are_shown():
    message = json.loads(serve.JSONFormatter(0).format(record('%d of %d', 'one')))['message']
    assert '%d of %d' in message and "'one'" in message


def test_a_formatter_works_with_handlers_of_the_standard_library(tmp_path):
    handler = logging.FileHandler(tmp_path / 'log', encoding='ascii')
    handler.setFormatter(serve.JSONFormatter(worker=2))
    handler.handle(record('ü \ud83d \U0001f600'))
    handler.close()
    assert json.loads((tmp_path / 'log').read_text())['message'] == 'ü \\ud83d \U0001f600'


# -- imports


@pytest.mark.parametrize(
    'code', ['from reactor import Reactor', 'import reactor.serve', 'from reactor.serve import JSONFormatter']
)
def test_logging_is_not_imported_with_the_package(code):
    words = [sys.executable, '-X', 'importtime', '-c', code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PROJECT)
    modules = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert 'reactor' in modules and not modules & {'logging', 'traceback', 'datetime'}


# -- standard error that fails


@contextmanager
def pipe(full: bool = False):
    reader, writer = os.pipe()
    if full:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b'.' * 4096)
        os.set_blocking(writer, True)
    try:
        yield reader, writer
    finally:
        for fd in reader, writer:
            with suppress(OSError):
                os.close(fd)


def everything(reader: int) -> bytes:
    data = b''
    while select.select([reader], [], [], 0)[0] and (piece := os.read(reader, 65536)):
        data += piece
    return data


def own(stream: StandardError, fd: int) -> None:
    """Close the descriptor that the stream has opened."""
    if stream.fd != fd:
        os.close(stream.fd)


@pytest.mark.parametrize('reopened', [True, False])
def test_a_reader_that_does_not_read_costs_one_wait_and_the_lines(monkeypatch, caplog, reopened):
    if not reopened:  # as after a change of user, or without /proc
        monkeypatch.setattr(os, 'open', lambda *args: (_ for _ in ()).throw(PermissionError()))
    with pipe(full=True) as (reader, writer):
        stream = StandardError(writer)
        monkeypatch.undo()
        began = time.monotonic()
        for number in range(1000):
            stream.write(f'{number}\n' * 2000)
        assert PATIENCE <= time.monotonic() - began < 20 * PATIENCE
        everything(reader)
        assert not caplog.records
        stream.write('after\n')
        assert everything(reader).decode().split()[-1] == 'after'
        assert '1000 log lines were dropped' in caplog.text and 'does not read' in caplog.text
        own(stream, writer)


def test_a_line_that_was_cut_off_does_not_spoil_the_next_one():
    with pipe() as (reader, writer):
        stream = StandardError(writer)
        stream.write('x' * 1_000_000 + '\n')
        assert set(everything(reader)) == {ord('x')}
        stream.write('after\n')
        assert everything(reader).startswith(b'\nafter\n')
        own(stream, writer)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere long lines are written in parts')
def test_long_lines_of_two_processes_are_not_mixed():
    code = (
        'import os; from reactor.serve.logs import StandardError; s = StandardError(2)\n'
        'for _ in range(60): s.write(str(os.getpid()) * 1500 + "\\n")'
    )
    with pipe() as (reader, writer):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)  # room for all lines: only a full pipe takes parts of a line
        children = [subprocess.Popen([sys.executable, '-c', code], stderr=writer, cwd=PROJECT) for _ in range(2)]
        assert [child.wait(20) for child in children] == [0, 0]
        lines = everything(reader).decode().splitlines()
    assert Counter(lines) == {str(child.pid) * 1500: 60 for child in children}


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this platform has no /dev/full')
def test_a_full_disk_raises_nothing(caplog):
    fd = os.open('/dev/full', os.O_WRONLY)
    try:
        stream = StandardError(fd)
        for _ in range(3):
            stream.write('x\n')
        with open(os.devnull, 'wb') as space:
            os.dup2(space.fileno(), fd)
        stream.write('x\n')
        assert '3 log lines were dropped' in caplog.text and os.strerror(28) in caplog.text
    finally:
        os.close(fd)


# -- real programs


class Program:
    """A running program with workers, and a client connected to it."""

    def __init__(self, stderr: Any = subprocess.PIPE, **settings: Any) -> None:
        self.errors = ''
        words = [sys.executable, str(PROGRAM), json.dumps(settings)]
        self.parent = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=stderr, cwd=PROJECT, process_group=0, text=True, errors='strict'
        )
        self.pid, self.port = json.loads(self.parent.stdout.readline())
        if stderr is subprocess.PIPE:
            self.reader = threading.Thread(target=self.read)
            self.reader.start()

    def read(self) -> None:
        for line in self.parent.stderr:
            self.errors += line

    def ask(self, line: bytes = b'x') -> tuple[int, int]:
        """Send a line on a new connection and return the worker's process id and slot."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=20) as conn:
            conn.sendall(line + b'\n')
            pid, slot = conn.makefile().readline().split()
            return int(pid), int(slot)

    def until(self, holds: Any, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.errors
            time.sleep(0.02)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.wait()
        self.parent.stdout.close()
        if self.parent.stderr:
            self.reader.join()
            self.parent.stderr.close()

    def end(self) -> int:
        self.parent.terminate()
        return self.parent.wait(20)


@pytest.mark.parametrize('style', ['text', 'json'])
def test_the_parent_and_each_worker_log_with_their_place_and_process(style):
    with Program(run={'log': style, 'workers': 2}) as program:
        seen: dict[int, int] = {}
        while len(seen) < 2:
            pid, slot = program.ask('ü'.encode())
            seen[slot] = pid
        assert set(seen) == {0, 1}
        program.ask(b'\xff')
        assert program.end() == 0
        program.reader.join()
        lines = program.errors.splitlines()
        if style == 'json':
            found = [json.loads(line) for line in lines]
            assert all(re.fullmatch(UTC, one['time']) for one in found)
            places = {(one['worker'], one['pid']) for one in found if one['logger'] == 'app'}
            assert places == {('parent', program.pid), *seen.items()}
            assert {'received ü', 'received \\udcff'} <= {one['message'] for one in found}
            assert all(one['size'] for one in found if one['message'].startswith('received '))
        else:
            assert all(re.match(rf'{UTC} [A-Z]+ (parent|worker \d) \(pid \d+\) [\w.]+: |    ', line) for line in lines)
            for slot, pid in seen.items():
                assert f'INFO worker {slot} (pid {pid}) app: received ü' in program.errors
            assert f'INFO parent (pid {program.pid}) app: the parent has started' in program.errors
            assert 'app: received \\udcff' in program.errors


def test_a_line_about_a_connection_has_the_slot_of_its_worker():
    with Program(run={'log': 'json', 'workers': 1}) as program:
        pid, slot = program.ask()
        with socket.create_connection(('127.0.0.1', program.port), timeout=20) as conn:
            conn.sendall(b'raise this\n')
            with suppress(ConnectionError):
                assert not conn.recv(1)
            client = conn.getsockname()
        program.until(lambda: 'raise this' in program.errors and program.errors.endswith('\n'))
        (line,) = (json.loads(one) for one in program.errors.splitlines() if 'raise this' in one)
        assert str(client[1]) in line['message']
        assert (line['logger'], line['level'], line['worker'], line['pid']) == ('reactor', 'ERROR', slot, pid)
        assert line['exception'].startswith('Traceback') and line['exception'].endswith('ValueError: raise this')


def test_an_exception_that_ends_a_worker_is_one_line_with_its_slot(tmp_path):
    (tmp_path / 'fail').touch()
    with Program(run={'log': 'json', 'workers': 1}, fail=str(tmp_path / 'fail')) as program:
        program.until(lambda: 'ended unexpectedly' in program.errors and program.errors.endswith('\n'))
        found = [json.loads(line) for line in program.errors.splitlines()]
        (first, *_) = (one for one in found if 'exception' in one)
        assert first['worker'] == 0 and first['level'] == 'CRITICAL'
        assert 'ValueError: failed because the test requested it' in first['exception']
        assert any(one['worker'] == 'parent' and f'pid {first["pid"]}' in one['message'] for one in found)


def test_by_default_logging_is_left_to_the_program():
    with Program(run={'workers': 1}) as program:
        program.ask()
        assert program.end() == 0
        program.reader.join()
        assert program.errors == ''  # the root logger has its default level, WARNING


@pytest.mark.parametrize('kind', ['a closed pipe', 'a full disk', 'a pipe that nothing reads'])
@pytest.mark.parametrize('style', ['text', 'json'])
def test_a_standard_error_that_fails_stops_neither_parent_nor_worker(kind, style):
    with pipe(full=kind == 'a pipe that nothing reads') as (reader, writer):
        stderr = writer
        if kind == 'a closed pipe':
            os.close(reader)
        elif kind == 'a full disk':
            if not os.path.exists('/dev/full'):
                pytest.skip('this platform has no /dev/full')
            stderr = os.open('/dev/full', os.O_WRONLY)
        settings: dict[str, Any] = {'run': {'log': style, 'workers': 1}}
        with Program(stderr, **settings) as program:
            if stderr != writer:
                os.close(stderr)
            pid, _ = program.ask()
            began = time.monotonic()
            for _ in range(200):
                assert program.ask(b'y' * 6000) == (pid, 0)  # longer than a pipe takes at once
            assert time.monotonic() - began < 10
            os.kill(pid, signal.SIGKILL)  # the parent logs this, and continues
            program.until(lambda: connects(program) not in (None, pid))
            assert program.end() == 0


def connects(program: Program) -> int | None:
    with suppress(OSError, ValueError):
        return program.ask()[0]
    return None


def test_without_a_standard_error_no_handler_is_added(monkeypatch):
    """Its number may belong to another file, such as the connection of a client."""
    monkeypatch.setattr(sys, '__stderr__', None)
    monkeypatch.setattr(logging.root, 'level', logging.root.level)
    before = list(logging.root.handlers)
    log_to_standard_error('json', 0)
    assert logging.root.handlers == before and sys.excepthook is not log_uncaught


# -- arguments


def test_another_style_is_refused(monkeypatch):
    monkeypatch.delenv('REACTOR_WORKER', raising=False)
    for wrong in 'xml', True, ['json']:
        with pytest.raises(ValueError, match="log must be 'text', 'json' or None, not "):
            serve.run(print, log=wrong)
