"""Counterparts of cl-async's tests of processes and files, with the same names and this package's guarantees."""

from __future__ import annotations

import os
import tempfile
import threading

import pytest

from reactor import DEVNULL, PIPE
from tests.helpers.support import Log, run_until

if os.name != 'posix':
    pytest.skip('pipes of children cannot be watched on this platform', allow_module_level=True)


def listen(pipe, log):
    pipe.on_data, pipe.on_eof, pipe.on_close = log.on_data, log.on_eof, log.on_close


def test_spawn_simple(r):
    exits = []
    process = r.spawn(
        ['echo', '-n'], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, on_exit=lambda *args: exits.append(args)
    )
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
    r.run()
    assert exits == [(process, 0, None)]


@pytest.mark.parametrize('name, redirect', [('stdout', ''), ('stderr', ' >&2')])
def test_process_redirect(r, name, redirect):
    """Standard output and standard error arrive through the pipes of the process object."""
    exits, log, seen = [], Log(), set()
    process = r.spawn(
        ['sh', '-c', f'printf "some test output"{redirect}'], on_exit=lambda *args: exits.append(args), **{name: PIPE}
    )
    pipe = getattr(process, name)
    listen(pipe, log)
    pipe.on_data = lambda conn, data: (seen.add(conn), log.on_data(conn, data))
    r.run()
    assert log.received == b'some test output' and seen == {pipe} and pipe is getattr(process, name)
    assert exits == [(process, 0, None)]


def test_process_redirect_stream(r):
    """Data is sent to the child and back."""
    log = Log()
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
    listen(process.stdout, log)
    process.stdin.write(b'hello ')
    process.stdin.write(b'there', log.on_written, 'all')
    process.stdin.close()
    r.run()
    assert log.received == b'hello there' and ('written', 'all') in log


def test_process_exec_failure(r):
    exits = []
    with pytest.raises(FileNotFoundError):
        r.spawn(['/no/such/command'], on_exit=lambda *args: exits.append(args))
    assert r.run()
    assert exits == []


def test_process_kill(r):
    exits = []
    process = r.spawn(['sleep', '60'], on_exit=lambda *args: exits.append(args))
    assert process.send_signal(2)
    r.run()
    assert exits == [(process, None, 2)]


def test_process_env(r, tmp_path):
    log = Log()
    process = r.spawn(['/bin/sh', '-c', 'echo $MY_VAR; pwd'], env={'MY_VAR': 'mine'}, cwd=str(tmp_path), stdout=PIPE)
    listen(process.stdout, log)
    r.run()
    assert log.received.decode().splitlines() == ['mine', os.path.realpath(tmp_path)]


def test_mkdtemp(r):
    """The package has no file operations, but any function can be called in a thread."""
    done = []
    r.run_in_thread(tempfile.mkdtemp, '', 'test-', on_done=lambda *result: done.append(result))
    r.run()
    ((path, error),) = done
    assert error is None and os.path.isdir(path)
    os.rmdir(path)


def test_mkdtemp_fail(r):
    done = []
    r.run_in_thread(tempfile.mkdtemp, '', 'test-', '/no/such/directory', on_done=lambda *result: done.append(result))
    r.run()
    ((path, error),) = done
    assert path is None and isinstance(error, FileNotFoundError)


def test_fs_monitor(r, tmp_path):
    pytest.importorskip('watchdog', reason="the extra 'paths' is not installed")
    events, before = [], threading.active_count()
    handle = r.watch_path(tmp_path, lambda handle, path, change: events.append((handle, path, change)))
    (tmp_path / 'file').write_text('x')
    name = str(tmp_path / 'file')
    run_until(r, lambda: (handle, name, 'created') in events)
    (tmp_path / 'file').unlink()
    run_until(r, lambda: (handle, name, 'deleted') in events)
    handle.close()
    run_until(r, lambda: threading.active_count() <= before)


def test_fs_watch_failure(r):
    pytest.importorskip('watchdog', reason="the extra 'paths' is not installed")
    with pytest.raises(FileNotFoundError):
        r.watch_path('/no/such/path', print)
