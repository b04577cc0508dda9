"""Child processes: start, input and output; each end is reported once, and signals never reach another process."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest

import reactor
from reactor import DEVNULL, PIPE, STDOUT, ConnectionClosed, HandleClosed, Process, Reactor, ReactorError
from reactor.kernel import Kernel
from reactor.loop.watcher import Watchers
from tests.helpers.support import Log, idle, in_thread, run_until, turns

if os.name != 'posix':
    pytest.skip('pipes of children cannot be watched on this platform', allow_module_level=True)

from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

STRANGERS: set[psutil.Process] = set()  # children that an earlier test has left behind


def children():
    """Return the children that this test has started and that have not been reaped, including zombies."""
    return [child for child in psutil.Process().children() if child not in STRANGERS]


@pytest.fixture(autouse=True)
def no_child_left():
    """Check that each test ends without a child, dead or alive."""
    STRANGERS.clear()
    STRANGERS.update(children())
    yield
    left = children()
    for child in left:
        child.kill()
        child.wait()
    assert not left


@pytest.fixture(params=['pidfd', 'no pidfd'])
def how(request, monkeypatch):
    """Run the test with and without pidfds: children must behave the same."""
    if request.param == 'no pidfd':
        monkeypatch.setattr(Kernel, 'pidfd', lambda self, pid: -1)
    elif not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    return request.param


class Exits(list):
    """An `on_exit` that records how each child ended: (code, signal)."""

    def __call__(self, process, code, signum):
        assert process.closed
        self.append((code, signum))


def shell(r, line, **keywords):
    return r.spawn(['sh', '-c', line], **keywords)


def python(r, code, **keywords):
    return r.spawn([sys.executable, '-S', '-E', '-c', code], **keywords)


def listen(pipe):
    """Return a `Log` that gets all callbacks of a pipe."""
    log = Log()
    for name in 'on_data', 'on_eof', 'on_close':
        setattr(pipe, name, getattr(log, name))
    return log


def wait_dead(process):
    """Block until the process has ended, without reaping it."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def stop(process):
    """Stop the process, and block until it has stopped."""
    process.send_signal(SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


# -- how a child ends


@pytest.mark.scenario(103)
@pytest.mark.parametrize(
    'line, how_it_ended',
    [('exit 0', (0, None)), ('exit 3', (3, None)), ('kill -TERM $$', (None, SIGTERM)), ('kill -9 $$', (None, SIGKILL))],
)
def test_on_exit_gets_the_code_or_the_signal_once(r, how, line, how_it_ended):
    exits = Exits()
    process = shell(r, line, on_exit=exits)
    assert not process.closed
    assert r.run()
    turns(r, 3)
    assert exits == [how_it_ended]
    assert process.closed and not children()


@pytest.mark.scenario(103)
def test_a_child_that_ended_before_the_first_turn_is_reported_once(r, how):
    exits = Exits()
    wait_dead(shell(r, 'exit 5', on_exit=exits))
    assert exits == []
    r.run()
    assert exits == [(5, None)]


@pytest.mark.scenario(103, 119)
def test_two_hundred_children_at_once_are_reported_once_each_and_leave_nothing(r, how):
    exits = Exits()
    for _ in range(200):
        r.spawn(['true'], stdin=DEVNULL, on_exit=exits)
    assert r.run()
    assert exits == [(0, None)] * 200


@pytest.mark.scenario(105)
def test_a_child_that_other_code_has_reaped_is_reported_as_unknown_with_one_warning(r, how, caplog):
    exits = Exits()
    process = shell(r, 'exit 3', on_exit=exits)
    os.waitpid(process.pid, 0)
    r.run()
    assert exits == [(255, None)]
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'was reaped by other code' in caplog.text


@pytest.mark.scenario(105)
def test_with_sigchld_ignored_children_are_reported_as_unknown(r, how, caplog):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        exits = Exits()
        shell(r, 'exit 3', on_exit=exits)
        r.run()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert exits == [(255, None)]


@pytest.mark.scenario(105)
def test_a_pidfd_that_other_code_closes_does_not_hide_the_end(r):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    exits = Exits()
    process = shell(r, 'read line', stdin=PIPE, on_exit=exits)
    fd = process.fileno()
    os.close(fd)
    turns(r, 2)
    r.watchers.evict_closed()  # epoll does not report the closed pidfd; with other selectors this has already happened
    assert process.fileno() == -1 and not process.closed
    process.stdin.close()
    r.run()
    assert exits == [(1, None)]


@pytest.mark.parametrize('reused', [False, True])
def test_a_child_whose_pidfd_was_closed_by_other_code_can_be_signalled_and_its_end_is_reported(r, reused):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    # Regression: `kill` and `close` used to raise EBADF every time.
    exits = Exits()
    process = shell(r, 'exec sleep 60', on_exit=exits)
    fd = process.fileno()
    os.close(fd)
    if reused:
        assert os.open(os.devnull, os.O_RDONLY) == fd
    try:
        assert process.kill() is True
        assert process.fileno() == -1
        r.run()
    finally:
        if reused:
            os.close(fd)
    assert exits == [(None, SIGKILL)]


def test_closing_the_reactor_ends_a_child_whose_pidfd_was_closed_by_other_code(sockets):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    exits, log = Exits(), Log()
    r = Reactor()
    process = shell(r, 'exec sleep 60', on_exit=exits)
    r.adopt(sockets()[0], log.on_data, on_close=log.on_close)
    os.close(process.fileno())
    r.close()
    assert exits == [(None, SIGKILL)] and log.names() == ['close']


def test_the_end_of_a_child_is_reported_when_its_pidfd_cannot_be_closed(r, monkeypatch):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    # This happens if other code has closed the pidfd. epoll never reports it, and `poll` reports it as readable.
    monkeypatch.setattr(Kernel, 'close_fd', lambda self, fd: os.close(fd) or os.close(fd))
    exits = Exits()
    shell(r, 'exit 3', on_exit=exits)
    r.run()
    assert exits == [(3, None)]


def test_the_end_of_a_child_is_reported_once_when_there_was_no_memory_at_the_first_attempt(r, caplog):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    exits, failed = Exits(), []
    remove = r.watchers.remove

    class Watchers(type(r.watchers)):
        __slots__ = ()

        def remove(self, handle):
            if not failed:
                failed.append(handle)
                raise MemoryError
            remove(handle)

    process = shell(r, 'exit 3', on_exit=exits)
    r.watchers.__class__ = Watchers
    run_until(r, lambda: exits)
    r.watchers.__class__ = Watchers.__base__
    if r.handles():
        r.run()
    assert failed == [process] and exits == [(3, None)]
    assert 'reaped' not in caplog.text


def test_a_child_is_started_although_its_pidfd_has_the_number_of_a_socket_that_other_code_has_closed(r, sockets):
    # Regression: `spawn` used to raise ReactorError, and the child kept running.
    ours, _theirs = sockets()
    conn = r.adopt(ours)
    fd = ours.fileno()
    os.close(fd)
    kept = []
    while (number := os.open(os.devnull, os.O_RDONLY)) < fd:
        kept.append(number)
    os.close(number)
    exits = Exits()
    try:
        shell(r, 'exit 3', on_exit=exits)
        run_until(r, lambda: exits)
    finally:
        for number in kept:
            os.close(number)
    assert exits == [(3, None)]
    ours.detach()
    conn.abort()
    turns(r, 2)


def test_a_child_keeps_running_when_there_is_no_memory_to_watch_its_pidfd_again(r):
    if not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    exits = Exits()
    process = shell(r, 'read line; exit 3', stdin=PIPE, on_exit=exits)
    r.watchers.refuse(process, OSError(errno.ENOSPC, 'no more watches'))
    assert not process.closed and process.fileno() == -1
    process.stdin.close()
    r.run()
    assert exits == [(3, None)]


@pytest.mark.parametrize('name', ['add', 'park'])
def test_no_child_and_no_descriptor_is_left_when_there_is_no_memory_for_its_handle(r, how, monkeypatch, name):
    # Regression: the child used to keep running without a handle.
    before = set(os.listdir('/dev/fd'))
    failed, method = [], getattr(Watchers, name)

    def fail(watchers, handle, *args):
        if isinstance(handle, Process):
            failed.append(handle)
            raise MemoryError
        method(watchers, handle, *args)

    monkeypatch.setattr(Watchers, name, fail)
    try:
        shell(r, 'exec sleep 60', stdin=PIPE).close()
    except MemoryError:
        assert failed and not children() and not r.handles()
    else:
        assert not failed
    monkeypatch.undo()
    r.run()
    failed.clear()
    assert set(os.listdir('/dev/fd')) == before


def test_without_pidfds_a_running_child_is_checked_less_and_less_often(fake, kernel, monkeypatch):
    looks = []
    monkeypatch.setattr(Kernel, 'pidfd', lambda self, pid: -1)
    reap = Kernel.reap
    monkeypatch.setattr(Kernel, 'reap', lambda self, child: looks.append(self.time) or reap(self, child))
    process = shell(fake, 'read line', stdin=PIPE)
    started = kernel.time
    run_until(fake, lambda: kernel.time > started + 10)
    assert 40 < len(looks) < 60
    process.close()
    fake.close()


def test_an_on_exit_that_raises_is_logged_and_the_loop_goes_on(r, caplog):
    def on_exit(process, code, signum):
        raise ValueError('mine')

    exits = Exits()
    shell(r, 'exit 1', on_exit=on_exit)
    shell(r, 'exit 2', on_exit=exits)
    assert r.run()
    assert exits == [(2, None)]
    assert 'mine' in caplog.text


@pytest.mark.scenario(107)
def test_exit_and_the_end_of_output_are_reported_separately(r):
    """A grandchild holds the pipe open: the exit is reported at once, and end of file when the grandchild ends."""
    exits = Exits()
    process = shell(r, 'sleep 60 & echo $!', stdout=PIPE, on_exit=exits)
    log = listen(process.stdout)
    run_until(r, lambda: exits and log.received.endswith(b'\n'))
    turns(r, 3)
    assert log.names() == ['data'] and not process.stdout.closed
    os.kill(int(log.received), SIGKILL)
    r.run()
    assert log.names() == ['data', 'eof', 'close']


# -- the pipes of a child


def test_the_output_of_a_child_arrives_as_a_stream(r):
    process = shell(r, 'echo out; echo err >&2', stdout=PIPE, stderr=PIPE)
    out, err = listen(process.stdout), listen(process.stderr)
    assert process.stdin is None
    r.run()
    assert out == [('data', b'out\n'), ('eof',), ('close', None)]
    assert err == [('data', b'err\n'), ('eof',), ('close', None)]


@pytest.mark.scenario(107)
def test_a_megabyte_goes_through_a_child_both_ways(r):
    exits, sent = Exits(), bytes(range(256)) * 4096
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE, on_exit=exits)
    out, written = listen(process.stdout), []
    assert process.stdin.write(sent, lambda pipe, what: written.append(what), 'all') is False
    assert process.stdin.buffered > 0
    process.stdin.write_eof()
    r.run()
    assert out.received == sent
    assert written == ['all'] and exits == [(0, None)]
    assert out.names()[-2:] == ['eof', 'close']


@pytest.mark.scenario(108)
def test_a_child_may_open_dev_stdout(r):
    process = shell(r, 'echo once > /dev/stdout; echo again > /dev/stdout', stdout=PIPE)
    out = listen(process.stdout)
    r.run()
    assert out.received == b'once\nagain\n'


def test_write_eof_ends_the_input_and_closes_the_pipe_at_once_when_nothing_waits(r):
    process = r.spawn(['cat'], stdin=PIPE, stdout=DEVNULL)
    log = listen(process.stdin)
    process.stdin.write(b'x')
    process.stdin.write_eof()
    process.stdin.write_eof()
    assert log == [] and process.stdin.closed
    with pytest.raises(ConnectionClosed):
        process.stdin.write(b'y')
    r.run()
    assert log == [('close', None)]


def test_write_eof_waits_without_limit_for_a_child_that_reads_late(fake):
    """Unlike `close`, `write_eof` is not cut off by `linger`."""
    process = shell(fake, 'read line; cat >/dev/null', stdin=PIPE, stdout=PIPE, linger=1)
    fake.call_later(100, process.send_signal, SIGCONT)
    stop(process)
    log = listen(process.stdin)
    process.stdin.write(b'x' * 200_000 + b'\n')
    process.stdin.write_eof()
    run_until(fake, lambda: fake.now > 1050)
    assert log == [] and process.stdin.buffered
    process.close()
    fake.close()
    assert log == [('close', None)]


def test_close_of_stdin_is_cut_off_by_linger(fake):
    process = shell(fake, 'exec sleep 60', stdin=PIPE, linger=2)
    log = listen(process.stdin)
    process.stdin.write(b'x' * 200_000)
    process.stdin.close()
    assert process.stdin.closed
    run_until(fake, lambda: log)
    assert type(log[0][1]).__name__ == 'WriteTimeout' and 'stdin of process' in str(log[0][1])
    process.close()
    fake.close()


def test_close_of_stdin_flushes_first(r):
    process = r.spawn(['wc', '-c'], stdin=PIPE, stdout=PIPE)
    out, log = listen(process.stdout), listen(process.stdin)
    process.stdin.write(b'x' * 300_000)
    process.stdin.close()
    r.run()
    assert int(out.received) == 300_000
    assert log == [('close', None)]


def test_on_drain_is_called_when_a_slow_child_has_caught_up(r):
    process = shell(r, 'exec cat >/dev/null', stdin=PIPE)
    drains = []
    process.stdin.on_drain = drains.append
    stop(process)
    while process.stdin.write(b'x' * 16384):
        pass
    assert idle(r) and drains == []
    process.send_signal(SIGCONT)
    run_until(r, lambda: drains)
    process.stdin.close()
    r.run()
    assert len(drains) == 1


@pytest.mark.scenario(107)
@pytest.mark.parametrize('way', ['write', 'write_eof', 'close'])
def test_a_child_that_dies_while_bytes_wait_is_a_broken_pipe_on_stdin_alone(r, caplog, way):
    exits = Exits()
    process = shell(r, 'exec sleep 60', stdin=PIPE, stdout=PIPE, on_exit=exits)
    ends, out = [], listen(process.stdout)
    process.stdin.on_close = lambda pipe, exc: ends.append((type(exc), pipe.buffered > 0))
    process.stdin.write(b'x' * 1_000_000)
    if way != 'write':
        getattr(process.stdin, way)()
    turns(r, 2)
    process.kill()
    r.run()
    assert ends == [(BrokenPipeError, True)]
    assert exits == [(None, SIGKILL)] and out == [('eof',), ('close', None)]
    assert not caplog.records


@pytest.mark.scenario(107)
def test_a_write_to_a_child_that_is_gone_fails_later_and_never_raises(r, caplog):
    process = r.spawn(['true'], stdin=PIPE)
    log = listen(process.stdin)
    wait_dead(process)
    assert process.stdin.write(b'x') is False
    assert process.stdin.write(b'y') is False
    assert log == []
    r.run()
    assert log.names() == ['close'] and isinstance(log[0][1], BrokenPipeError)
    assert not caplog.records


def test_a_child_that_closes_its_stdin_ends_the_pipe_without_an_error(r):
    process = shell(r, 'exec 0<&-; echo done; exec sleep 60', stdin=PIPE, stdout=PIPE)
    log = listen(process.stdin)
    run_until(r, lambda: log)
    assert log == [('close', None)]
    process.close()
    r.run()


def test_a_spurious_readability_of_stdin_is_harmless(r):
    process = r.spawn(['cat'], stdin=PIPE)
    process.stdin.handle_read()
    assert not process.stdin.closed
    process.stdin.close()
    r.run()


def test_a_write_to_stdout_is_refused(r):
    process = shell(r, 'exit 0', stdout=PIPE)
    with pytest.raises(ConnectionClosed):
        process.stdout.write(b'x')
    process.stdout.write_eof()
    r.run()


@pytest.mark.scenario(107)
def test_pause_reading_stops_a_flood_of_output(r):
    process = r.spawn(['yes'], stdout=PIPE)
    received = 0

    def on_data(pipe, data):
        nonlocal received
        received += len(data)
        if received > 1_000_000:
            pipe.pause_reading()

    process.stdout.on_data = on_data
    run_until(r, lambda: received > 1_000_000)
    before = received
    assert idle(r)
    assert received == before
    process.stdout.resume_reading()
    run_until(r, lambda: received > before)
    process.close()
    r.run()


def test_closing_stdout_ends_a_child_that_keeps_writing_by_sigpipe(r):
    exits = Exits()
    process = r.spawn(['yes'], stdout=PIPE, on_exit=exits)
    log = Log()
    process.stdout.on_close = log.on_close
    process.stdout.on_data = lambda pipe, data: pipe.close()
    r.run()
    assert exits == [(None, signal.SIGPIPE)]
    assert log == [('close', None)]


def test_an_exception_in_on_data_of_a_pipe_ends_that_pipe_only(r, caplog):
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
    log = Log()
    process.stdout.on_close = log.on_close
    process.stdout.on_data = lambda pipe, data: 1 / 0
    process.stdin.write(b'x')
    run_until(r, lambda: log)
    assert isinstance(log[0][1], ZeroDivisionError)
    assert 'ZeroDivisionError' in caplog.text
    assert not process.stdin.closed and not process.closed
    process.close()
    r.run()


def test_limits_given_to_spawn_apply_to_its_pipes(r):
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE, high_water=10, read_size=1)
    sizes = []
    process.stdout.on_data = lambda pipe, data: sizes.append(len(data))
    process.stdin.write(b'abc')
    process.stdin.close()
    r.run()
    assert sizes == [1, 1, 1]
    assert process.stdin.options.high_water == 10


# -- other standard streams


def test_standard_streams_may_be_files_and_descriptors(r, tmp_path):
    (tmp_path / 'in').write_bytes(b'from a file')
    with (
        open(tmp_path / 'in', 'rb') as source,
        open(tmp_path / 'out', 'wb') as out,
        open(tmp_path / 'err', 'wb') as err,
    ):
        process = shell(r, 'cat; echo oops >&2', stdin=source, stdout=out.fileno(), stderr=err)
        r.run()
        assert not out.closed and os.fstat(out.fileno())
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
    assert (tmp_path / 'out').read_bytes() == b'from a file'
    assert (tmp_path / 'err').read_bytes() == b'oops\n'


def test_standard_streams_are_inherited_by_default(r, capfd):
    shell(r, 'echo same output')
    r.run()
    assert capfd.readouterr().out == 'same output\n'


def test_standard_streams_on_devnull_are_empty_and_accept_everything(r, capfd):
    exits = Exits()
    shell(r, 'cat; echo out; echo err >&2', stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, on_exit=exits)
    r.run()
    assert exits == [(0, None)] and capfd.readouterr() == ('', '')


def test_stderr_may_be_redirected_to_stdout(r):
    process = shell(r, 'echo one; echo two >&2', stdout=PIPE, stderr=STDOUT)
    out = listen(process.stdout)
    r.run()
    assert out.received == b'one\ntwo\n' and process.stderr is None


def test_the_constants_equal_those_of_subprocess():
    import subprocess

    assert (PIPE, STDOUT, DEVNULL) == (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL)


# -- what a child inherits


def test_a_child_gets_the_given_environment_and_directory(r, tmp_path):
    process = r.spawn(['/bin/sh', '-c', 'pwd; echo $A-$HOME'], env={'A': 'b'}, cwd=tmp_path, stdout=PIPE)
    out = listen(process.stdout)
    r.run()
    assert out.received == os.fsencode(os.path.realpath(tmp_path)) + b'\nb-\n'


@pytest.mark.scenario(108, 114)
def test_a_child_inherits_no_descriptor_but_three(r, sockets):
    ours, _ = sockets()
    os.set_inheritable(ours.fileno(), True)
    code = 'import os; print(*[fd for fd in range(256) if os.path.exists(f"/dev/fd/{fd}")])'
    with open(os.devnull) as another:
        os.set_inheritable(another.fileno(), True)
        process = python(r, code, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        out, err = listen(process.stdout), listen(process.stderr)
        r.run()
    assert out.received.split() == [b'0', b'1', b'2'], err.received


@pytest.mark.scenario(114)
def test_a_child_inherits_the_given_descriptors_by_the_same_number_and_no_others(r, sockets):
    ours, theirs = sockets()
    _, another = sockets()
    code = 'import os; print(*[fd for fd in range(256) if os.path.exists(f"/dev/fd/{fd}")])'
    passed = [theirs, another.fileno()]
    process = python(r, code, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, pass_fds=passed)
    out, err = listen(process.stdout), listen(process.stderr)
    r.run()
    assert {int(fd) for fd in out.received.split()} == {0, 1, 2, theirs.fileno(), another.fileno()}, err.received
    assert not os.get_inheritable(theirs.fileno())  # the next child does not inherit the descriptor
    ours.send(b'x')
    assert theirs.recv(1) == b'x'


def test_a_closed_descriptor_to_inherit_raises_at_the_call_and_leaves_nothing(r, sockets):
    ours, _ = sockets()
    number = ours.fileno()
    ours.close()
    with pytest.raises(ValueError, match='closed already'):
        r.spawn(['true'], pass_fds=[ours])
    with pytest.raises(OSError, match='not open'):
        r.spawn(['true'], stdout=PIPE, pass_fds=[number])
    assert not children() and not r.handles()


@pytest.mark.scenario(108)
def test_a_child_gets_signals_as_a_shell_would_give_them(r):
    """Python ignores SIGPIPE. A child would inherit this setting, so the default is restored in the child."""
    exits = Exits()
    shell(r, 'kill -PIPE $$', on_exit=exits)
    r.add_signal_handler(signal.SIGUSR1, print).unref()
    shell(r, 'kill -USR1 $$', on_exit=exits)
    run_until(r, lambda: len(exits) == 2)
    r.clear_signal_handlers()
    assert sorted(exits) == [(None, signal.SIGUSR1), (None, signal.SIGPIPE)]


FAILURES = [
    (['/no/such/program'], {}, FileNotFoundError),
    (['no-such-program-anywhere'], {}, FileNotFoundError),
    (['/etc'], {}, PermissionError),
    (['true'], {'cwd': '/no/such/directory'}, FileNotFoundError),
    (['/etc/hostname'], {}, OSError),
]


@pytest.mark.scenario(106)
@pytest.mark.parametrize('args, keywords, error', FAILURES, ids=[str(failure[:2]) for failure in FAILURES])
def test_a_command_that_cannot_be_started_raises_at_the_call_and_leaves_nothing(r, args, keywords, error):
    exits = Exits()
    with pytest.raises(error):
        r.spawn(args, stdin=PIPE, stdout=PIPE, stderr=PIPE, on_exit=exits, **keywords)
    assert not r.handles() and not children()
    r.run()
    assert exits == []


@pytest.mark.scenario(106)
def test_spawn_raises_and_leaves_nothing_when_no_descriptors_are_left(r):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir('/dev/fd'))
    for more in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
        try:
            process = r.spawn(['true'], stdin=PIPE, stdout=PIPE, stderr=PIPE)
        except OSError:
            process = None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if process is None:
            assert not r.handles() and not children()
        r.run()
        assert not children()


@pytest.mark.parametrize(
    'args, error',
    [
        ('ls -l', TypeError),
        (b'ls', TypeError),
        ([], ValueError),
        (['ls', 3], TypeError),
        (['a\0b'], ValueError),
        (3, TypeError),
    ],
)
def test_a_command_is_a_list_of_words(r, args, error):
    with pytest.raises(error):
        r.spawn(args)
    assert not children()


@pytest.mark.parametrize(
    'keywords, error',
    [
        ({'stdin': STDOUT}, ValueError),
        ({'stdout': STDOUT}, ValueError),
        ({'stdout': -7}, ValueError),
        ({'stdout': 'out.txt'}, TypeError),
        ({'on_exit': 3}, TypeError),
        ({'pass_fds': 3}, TypeError),
        ({'pass_fds': [-1]}, ValueError),
        ({'pass_fds': ['0']}, TypeError),
        ({'pass_fds': [True]}, TypeError),
        ({'high_water': -1}, ValueError),
        ({'no_such_option': 1}, TypeError),
    ],
)
def test_bad_arguments_raise_at_the_call(r, keywords, error):
    with pytest.raises(error):
        r.spawn(['true'], **keywords)
    assert not children() and not r.handles()


# -- signals to a child


@pytest.mark.scenario(104)
def test_signals_reach_a_child_until_it_has_ended(r, how):
    exits = Exits()
    process = shell(r, 'exec sleep 60', on_exit=exits)
    assert process.terminate() is True
    r.run()
    assert exits == [(None, SIGTERM)]
    assert process.send_signal(SIGTERM) is process.terminate() is process.kill() is False


@pytest.mark.scenario(104)
def test_a_signal_after_the_end_of_a_child_reaches_no_process(r, how, monkeypatch):
    exits, sent = Exits(), []
    process = r.spawn(['true'], on_exit=exits)
    wait_dead(process)
    monkeypatch.setattr(os, 'kill', lambda *args: sent.append(args))
    process.kill()
    assert exits == []  # `on_exit` is not called inside `kill`, even if `kill` found the child dead
    r.run()
    assert process.kill() is False
    assert sent == [] and exits == [(0, None)]


@pytest.mark.scenario(104)
def test_a_signal_does_not_reach_a_process_with_the_pid_of_a_reaped_child(r, how, monkeypatch, caplog):
    process, sent = r.spawn(['true']), []
    os.waitpid(process.pid, 0)
    monkeypatch.setattr(os, 'kill', lambda *args: sent.append(args))
    assert process.kill() is False
    r.run()
    assert sent == []


def test_an_invalid_signal_raises(r):
    process = shell(r, 'exec sleep 60')
    with pytest.raises((OSError, ValueError)):
        process.send_signal(12345)
    process.kill()
    r.run()


# -- the handle


@pytest.mark.scenario(141)
def test_close_kills_the_child_closes_its_pipes_and_calls_on_exit(r, how):
    exits = Exits()
    process = shell(r, 'exec sleep 60', stdin=PIPE, stdout=PIPE, on_exit=exits)
    log = listen(process.stdin)
    process.stdin.write(b'x' * 200_000)
    process.close()
    process.close()
    assert process.closed and process.stdin.closed and process.stdout.closed
    assert exits == [] and log == []
    r.run()
    process.close()
    assert exits == [(None, SIGKILL)] and log == [('close', None)]


@pytest.mark.scenario(141)
def test_closing_the_reactor_kills_and_reaps_its_children_and_calls_on_exit(r, how):
    exits = Exits()
    for _ in range(5):
        shell(r, 'exec sleep 60', stdin=PIPE, stdout=PIPE, on_exit=exits)
    r.close()
    assert exits == [(None, SIGKILL)] * 5
    assert not children()
    with pytest.raises(HandleClosed):
        r.spawn(['true'])


@pytest.mark.scenario(141)
def test_closing_the_reactor_gives_up_on_a_child_that_does_not_die(r, monkeypatch, caplog):
    monkeypatch.setattr(Kernel, 'signal_child', lambda *args: None)
    monkeypatch.setattr(Kernel, 'sleep', lambda *args: None)
    exits = Exits()
    process = shell(r, 'exec sleep 60', on_exit=exits)
    with pytest.warns(ResourceWarning, match='still running'):
        r.close()
        gc.collect()
    assert exits == [] and 'after SIGKILL, and is abandoned' in caplog.text
    os.kill(process.pid, SIGKILL)
    os.waitpid(process.pid, 0)


def test_a_running_child_keeps_the_loop_running_unless_unreferenced(r, how):
    process = shell(r, 'exec sleep 60')
    assert r.run_once(0) is True
    process.unref()
    assert r.run() is True and not process.closed
    process.ref()
    assert r.run_once(0) is True
    process.close()
    r.run()


def test_a_running_child_costs_no_turns(r):
    process = shell(r, 'exec sleep 60', stdin=PIPE, stdout=PIPE)
    assert idle(r)
    process.close()
    r.run()


def test_the_repr_of_a_process_shows_what_it_is_and_what_it_waits_for(r):
    process = r.spawn(['cat', 'a b'], stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    assert isinstance(process, Process)
    assert repr(process) == f"<Process fd={process.fileno()} running pid={process.pid} ['cat', 'a b']>"
    assert f'pid={process.pid}' in '\n'.join(r.why_alive()) and 'waits for its end' in '\n'.join(r.why_alive())
    assert (
        repr(process.stdin)
        == f'<WritePipe fd={process.stdin.fileno()} OPEN stdin of process {process.pid}, 0 bytes wait>'
    )
    assert process.stdout.peername == f'stdout of process {process.pid}' and process.stdout.sockname is None
    process.close()
    assert ' closing ' in repr(process)
    r.run()
    assert ' ended ' in repr(process) and 'fd=-1' in repr(process)


@pytest.mark.scenario(119)
def test_a_child_that_has_ended_is_freed_without_the_garbage_collector(r, how):
    gc.collect()
    gc.disable()
    try:
        process = shell(r, 'cat', stdin=PIPE, stdout=PIPE)
        process.on_exit = lambda *args, process=process: None
        process.stdout.on_data = lambda *args, process=process: None
        process.stdin.close()
        r.run()
        gone = [weakref.ref(thing) for thing in (process, process.stdin, process.stdout)]
        del process
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_another_thread_is_refused():
    with Reactor(debug=True) as r:
        process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)

        def check(conn=None):
            for call in (
                process.kill,
                process.close,
                process.stdin.write_eof,
                process.stdin.close,
                process.stdout.close,
            ):
                with pytest.raises(ReactorError, match='another thread'):
                    in_thread(call)
            with pytest.raises(ReactorError, match='another thread'):
                in_thread(process.stdin.write, b'x')
            process.stdin.close()

        r.run(check)
        assert process.closed


# -- when this process ends


@pytest.mark.scenario(112)
def test_when_this_process_is_killed_its_children_get_the_end_of_their_input(tmp_path):
    """A killed parent cannot kill its children. A child that should end with its parent has to read its stdin."""
    program = tmp_path / 'parent.py'
    program.write_text(
        'import reactor\n'
        'def main(r):\n'
        "    child = r.spawn(['sh', '-c', 'cat; echo ended'], stdin=reactor.PIPE)\n"
        '    print(child.pid, flush=True)\n'
        'reactor.run(main)\n'
    )
    command = [sys.executable, str(program)]
    environment = {**os.environ, 'PYTHONPATH': str(Path(reactor.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        try:
            assert int(parent.stdout.readline()) > 0
            parent.kill()
            assert parent.stdout.read() == b'ended\n'  # `read` reached end of file: no process has the pipe open now
        finally:
            parent.kill()


# -- fork


@pytest.mark.scenario(109)
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_forked_copy_of_this_process_cannot_run_the_reactor_and_may_close_it(r, sockets):
    ours, theirs = sockets()
    log, ends = Log(), []
    conn = r.adopt(ours, log.on_data, on_close=log.on_close)
    r.add_exit_callback(ends.append, 'closed')
    pid = os.fork()
    if not pid:
        try:
            with pytest.raises(ReactorError, match='forked'):
                r.run_once(0)
            r.close()
            r.close()
            assert r.guard.closed and log == ends == []
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    theirs.send(b'x')
    run_until(r, lambda: log.received == b'x')
    in_thread(r.call_soon_threadsafe, conn.close)  # the wakeup socket is still watched
    run_until(r, lambda: log.names() == ['data', 'close'])


@pytest.mark.scenario(109)
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')
def test_a_callback_may_fork_and_the_copy_may_use_its_own_reactor(r, sockets):
    """Each process has its own signal handlers, so `close` in the copy must restore the handlers of the copy."""
    ours, theirs = sockets()
    log = Log()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)

    def in_the_copy():
        r.close()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)) == before
        assert signal.set_wakeup_fd(-1) == -1
        received = []
        with Reactor() as mine:
            mine.add_signal_handler(signal.SIGUSR1, received.append, 'mine').unref()
            mine.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
            run_until(mine, lambda: received == ['mine'])

    def on_data(conn, data):
        if data == b'fork':
            pid = os.fork()
            if not pid:
                try:
                    in_the_copy()
                    os._exit(0)
                finally:
                    os._exit(1)
            log.append(('exit', os.waitpid(pid, 0)[1]))
        log.on_data(conn, data)
        if data == b'on':
            conn.close()

    r.adopt(ours, on_data, on_close=log.on_close)
    r.add_signal_handler(signal.SIGUSR1, log.append, ('signal',)).unref()
    theirs.send(b'fork')
    r.call_later(0.1, theirs.send, b'on')
    r.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    assert r.run() is True
    assert log == [('exit', 0), ('data', b'fork'), ('signal',), ('data', b'on'), ('close', None)]
    r.clear_signal_handlers()


# -- the options of a pipe, by its direction


@pytest.mark.parametrize('limit', ['read_timeout', 'idle_timeout'])
def test_a_read_limit_does_not_reset_the_stdin_of_a_child_while_we_write_to_it(fake, limit):
    process = shell(fake, 'exec cat >/dev/null', stdin=PIPE, **{limit: 5})
    log = listen(process.stdin)
    fake.call_every(1, lambda: process.stdin.closed or process.stdin.write(b'x'))
    run_until(fake, lambda: fake.now > 1050)
    assert log == []
    process.close()
    fake.close()


@pytest.mark.parametrize(('limit', 'error'), [('read_timeout', 'ReadTimeout'), ('idle_timeout', 'IdleTimeout')])
def test_a_child_that_writes_nothing_for_too_long_has_only_its_output_reset(fake, limit, error):
    process = shell(fake, 'exec sleep 60', stdin=PIPE, stdout=PIPE, **{limit: 5})
    logs = [listen(process.stdin), listen(process.stdout)]
    run_until(fake, lambda: logs[1])
    assert logs[0] == [] and type(logs[1][0][1]).__name__ == error
    process.close()
    fake.close()


def test_a_child_that_reads_nothing_for_too_long_has_its_stdin_reset(fake):
    process = shell(fake, 'exec sleep 60', stdin=PIPE, stdout=PIPE, write_timeout=5)
    logs = [listen(process.stdin), listen(process.stdout)]
    process.stdin.write(b'x' * 200_000)
    run_until(fake, lambda: logs[0])
    assert logs[1] == [] and type(logs[0][0][1]).__name__ == 'WriteTimeout'
    process.close()
    fake.close()


def test_a_time_limit_for_the_other_direction_of_a_pipe_is_refused(r):
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
    with pytest.raises(ValueError, match='read timeout of 5'):
        process.stdin.set_timeouts(read=5)
    with pytest.raises(ValueError, match='write timeout of 5'):
        process.stdout.set_timeouts(write=5)
    process.stdin.set_timeouts(write=5, idle=5)
    process.stdout.set_timeouts(read=5, idle=5)
    process.close()
    run_until(r, lambda: not r.handles())


@pytest.mark.parametrize('name', ['ssl', 'server_hostname', 'handshake_timeout', 'nodelay', 'keepalive'])
def test_an_option_of_sockets_is_refused_for_the_pipes_of_a_child_and_not_ignored(r, name):
    with pytest.raises(TypeError, match=rf"spawn\(\) has no option '{name}': pipes"):
        r.spawn(['cat'], stdin=PIPE, **{name: None})
    assert r.handles() == []


def test_a_pipe_has_no_tls(r):
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
    for pipe in process.stdin, process.stdout:
        with pytest.raises(TypeError, match='needs a connection over a socket'):
            pipe.start_tls(None)
    process.close()
    run_until(r, lambda: not r.handles())


def test_unread_bytes_of_a_pipe_are_detected(r):
    process = r.spawn(['cat'], stdin=PIPE, stdout=PIPE)
    process.stdout.pause_reading()
    assert not process.stdout.unread and not process.stdin.unread
    process.stdin.write(b'x')
    run_until(r, lambda: process.stdout.unread)
    assert not process.stdin.unread
    process.stdin.write_eof()
    log = listen(process.stdout)
    process.stdout.resume_reading()
    run_until(r, lambda: 'close' in log.names())
    assert not process.stdout.unread and not process.stdin.unread
    run_until(r, lambda: not r.handles())


@pytest.mark.parametrize('env', [5, 'A=1', [('A', '1')], {'A': 1}, {1: 'A'}, {'A': 'a\0b'}], ids=repr)
def test_an_invalid_environment_is_refused_with_its_value(r, env):
    with pytest.raises((TypeError, ValueError), match='env'):
        r.spawn(['true'], env=env)


@pytest.mark.parametrize('options', [{'cwd': 5}, {'cwd': 'a\0b'}, {'stdin': 1 << 31}, {'stdin': True}, {'pass_fds': 5}])
def test_options_that_a_child_cannot_have_are_refused_by_name(r, options):
    with pytest.raises((TypeError, ValueError, OSError), match=next(iter(options))):
        r.spawn(['true'], **options)
