"""`python -m reactor.observe`: tables, JSON, watching, errors, exit codes, and the report for bug reports."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import reactor
from reactor import Reactor, observe
from reactor.loop.counters import COUNTS, GAUGES
from reactor.observe import __main__ as command
from reactor.observe import report as report_module
from reactor.observe import tables
from reactor.observe.asking import ControlClient
from reactor.observe.report import report

if not hasattr(socket, 'AF_UNIX'):
    pytest.skip('NOT TESTED: the control socket: this platform has no Unix sockets', allow_module_level=True)

APP = """
import sys, reactor
from reactor import observe
def main(r):
    server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
    r.call_every(0.002, int)
    observe.serve_control(r, sys.argv[1])
    print('ready', flush=True)
print(reactor.run(main), flush=True)
"""


def start(path):
    """Start a program with a control socket."""
    process = subprocess.Popen([sys.executable, '-c', APP, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


def end(process):
    process.terminate()
    process.communicate(timeout=10)


@pytest.fixture(scope='module')
def app(tmp_path_factory):
    """A program for all tests that do not change it: its process, and the path of its control socket."""
    path = str(tmp_path_factory.mktemp('app') / 'control')
    process = start(path)
    yield process, path
    end(process)


@pytest.fixture
def path(app):
    return app[1]


def fails(capsys, *arguments):
    """Run the command, which must fail; return its error, which must be one line."""
    status = command.main(arguments)
    out, err = capsys.readouterr()
    assert (status, out, err.count('\n')) == (1, '', 1)
    return err.removeprefix('python -m reactor.observe: ').rstrip()


def mistyped(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count('\n')) == (2, '', 1)
    return err


# -- output


def test_without_a_command_the_counters_are_printed(app, capsys):
    assert command.main([app[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'reactor {reactor.__version__}, pid {app[0].pid}'
    rows = dict(line.split() for line in lines if len(line.split()) == 2)
    assert int(rows['handles']) >= 3 and int(rows['loop_count'].replace(',', '')) > 0
    assert 'incoming' not in rows  # zeros are omitted


def test_the_answers_to_several_commands_are_printed_one_below_the_other(path, capsys):
    assert command.main([path, 'phases', 'handles', 'why-alive', 'help']) == 0
    out = capsys.readouterr().out
    for text in 'completions', 'timers fired; late: 50% by less than', '<Listener fd=', 'timer of builtins.int':
        assert text in out
    assert (
        re.search(r'^\d open: .*1 ControlSocket, 1 Listener', out, re.M)
        and '(does not keep the program running)' in out
    )
    assert 'lame_duck: the seconds to keep accepting' in out


def test_as_json_each_answer_is_one_line(path, capsys):
    assert command.main([path, 'stats', 'handles', '--json', '--kind', 'Listener']) == 0
    stats, handles = map(json.loads, capsys.readouterr().out.splitlines())
    assert stats['sum']['loop_count'] > 0
    assert len(handles['handles']) == 1 and handles['kinds']['Stream'] >= 1


def times(monkeypatch, count):
    """Interrupt `--watch` after `count` outputs, as Ctrl-C does."""
    left = [count]

    def sleep(seconds):
        assert 0 <= seconds < 1
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        threading.Event().wait(0.02)

    monkeypatch.setattr(command, 'sleep', sleep)


def test_watching_shows_the_changes_since_the_last_output(path, capsys, monkeypatch):
    times(monkeypatch, 3)
    assert command.main([path, 'stats', 'phases', '--watch', '0.05']) == 0
    out = capsys.readouterr().out
    assert out.count('per second') == 2 and out.count('idle') == 6 and '\x1b' not in out
    rates = [float(line.split()[2]) for line in out.splitlines() if re.match(r'timers_fired +\S+ +\S+$', line)]
    assert len(rates) == 2 and all(rate > 0 for rate in rates)


def test_watching_on_a_terminal_overwrites_the_last_output(path, capsys, monkeypatch):
    times(monkeypatch, 2)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert command.main([path, '--watch', '0.05']) == 0
    pictures = capsys.readouterr().out.split('\x1b[H')[1:]
    assert len(pictures) == 2 and all(picture.endswith('\x1b[J') and '\x1b[K\n' in picture for picture in pictures)


def test_watching_as_json_prints_a_line_each_time(path, capsys, monkeypatch):
    times(monkeypatch, 2)
    assert command.main([path, '--watch', '0.05', '--json']) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert second['clock'] > first['clock']


def test_ctrl_c_before_the_answer_ends_the_command_with_the_usual_status(path, monkeypatch):
    def interrupted(client, command):
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlClient, 'ask', interrupted)
    assert command.main([path]) == 130


def test_drain_ends_the_program(tmp_path, capsys):
    path = str(tmp_path / 'control')
    process = start(path)
    try:
        assert command.main([path, 'drain', '--drain-timeout', '20', '--lame-duck', '0.1']) == 0
        assert 'accepts connections for 0.1 s, resets the remaining ones after 20 s' in capsys.readouterr().out
        assert process.wait(timeout=10) == 0 and process.stdout.read() == 'False\n'
    finally:
        end(process)
    assert 'no such socket' in fails(capsys, path)


def test_a_closed_output_pipe_is_not_an_error(path):
    done = subprocess.Popen(
        [sys.executable, '-m', 'reactor.observe', path, '--watch', '0.01'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    done.stdout.readline()
    done.stdout.close()
    assert done.wait(timeout=20) == 1
    assert done.stderr.read() == b''
    done.stderr.close()


# -- tables


def figures(r, **changes):
    return {**observe.source(r)()['0'], **changes}


def answers(*figures):
    """Return two answers to `stats`, a second apart; in the second one, all counts have doubled."""
    workers = {str(n): one for n, one in enumerate(figures)}
    total = {'version': '1', 'clock': 1.0, 'draining': True, 'workers': workers, 'sum': observe.combined(figures)}
    later = [
        {name: value * 2 if name in COUNTS else value for name, value in one.items()}
        for one in (*figures, total['sum'])
    ]
    workers = {str(n): one for n, one in enumerate(later[:-1])}
    return total, {**total, 'clock': 2.0, 'workers': workers, 'sum': later[-1]}


def test_workers_are_shown_side_by_side(fake):
    before, now = answers(figures(fake, reads=1000, pid=7), figures(fake, reads=500, pid=8))
    lines = tables.stats(now, before)
    assert lines[0] == 'reactor 1, pid 7, 8, draining'
    assert lines[2].split() == ['all', 'per', 'second', '0', '1']
    assert lines[3].split() == ['reads', '3,000', '1,500.0', '2,000', '1,000']


@pytest.mark.parametrize(('count', 'left_out'), [(2, None), (8, None), (9, 1), (10, 2)])
def test_the_first_eight_workers_are_shown_and_the_others_counted(fake, count, left_out):
    before, _ = answers(*[figures(fake, reads=1, pid=n) for n in range(count)])
    lines = tables.stats(before)
    assert lines[2].split() == ['all', *map(str, range(min(count, 8)))]
    note = [line for line in lines if 'more workers' in line]
    assert note == ([f'and {left_out} more workers; --json shows all of them'] if left_out else [])


def test_a_restarted_worker_has_no_negative_rates(fake):
    before, now = answers(figures(fake, reads=1000))
    # The clock went back, so this is a different program.
    assert tables.stats(before, now)[3].split() == ['reads', '1,000']
    now['workers']['0'] |= {'reads': 10}
    now['sum']['reads'] = 10
    assert tables.stats(now, before)[3].split() == ['reads', '10', '0.0']
    now['workers']['0'] |= {'pid': 77}
    assert tables.stats(now, before)[3].split() == ['reads', '10', '10.0']  # the rate since the new process started


def test_the_counts_of_a_replaced_worker_are_not_subtracted_from_those_of_the_others(fake):
    before, now = answers(figures(fake, reads=1000, pid=7), figures(fake, reads=1000, pid=8))
    now['workers'] = {'0': figures(fake, reads=10, pid=9), '1': figures(fake, reads=1500, pid=8)}
    now['sum'] = observe.combined(now['workers'].values())
    assert tables.stats(now, before)[3].split() == ['reads', '1,510', '510.0', '10', '1,500']

    def part(seconds, turns, fired):
        lag = {'timer_lag': [fired, *[0] * 15], 'timer_lag_sum': fired / 1000}
        return {'seconds': {'idle': float(seconds)}, 'loop_count': turns, **lag}

    then = {'workers': {'0': part(100, 1000, 500), '1': part(100, 1000, 500)}, 'sum': part(200, 2000, 1000)}
    # The new process has made more turns than the old one.
    here = {'workers': {'0': part(1, 3000, 5), '1': part(101, 1010, 510)}, 'sum': part(102, 4010, 515)}
    lines = tables.phases(here, then)
    assert lines[1].split() == ['idle', '2.000', '100.0%', '100.0%', '100.0%']
    assert lines[-1].startswith('15 timers fired; ')


def test_every_counter_has_a_row(fake):
    names = (*COUNTS, *GAUGES)
    before, _ = answers(figures(fake, **dict.fromkeys(names, 1)))
    assert {line.split()[0] for line in tables.stats(before)[3:]} >= set(names)


def test_lateness_is_computed_from_the_histogram(fake):
    lag = [90, 0, 5, 4, *[0] * 11, 1]
    phases = {'seconds': {'idle': 3.0, 'timers': 1.0}, 'loop_count': 5, 'timer_lag': lag, 'timer_lag_sum': 20.0}
    lines = tables.phases({'workers': {'0': phases}, 'sum': phases})
    assert lines[-1] == (
        '100 timers fired; late: 50% by less than 0.98 ms, 99% by less than 7.8 ms, 100% by 16 s or more; mean 0.2 s'
    )
    assert lines[1].split() == ['idle', '3.000', '75.0%']
    assert tables.phases({'workers': {}, 'sum': phases}, {'workers': {}, 'sum': phases})[-1] == 'no timer has fired'


def test_control_characters_are_never_printed():
    evil = 'x\x1b[2J\r\n\x07\u202e\x9b'
    one = {'handle': evil, 'seconds': 1.0, 'waits_for': evil, 'keeps_running': True}
    lines = tables.handles({'kinds': {evil: 1}, 'handles': [one], 'left_out': 3})
    lines += tables.why_alive({'reasons': [evil], 'more': True}) + tables.table([[evil, evil]])
    lines += tables.pairs([('a', evil)])
    assert lines and all(line.isprintable() for line in lines)
    assert tables.why_alive({'reasons': [], 'more': False}) == ['nothing keeps the program running']


# -- errors


def test_no_such_socket(capsys, tmp_path):
    path = str(tmp_path / 'none')
    assert (
        fails(capsys, path) == f'{path}: no such socket; the program creates it with observe.serve_control(r, {path!r})'
    )


def test_the_socket_has_no_listener(capsys, tmp_path):
    path = str(tmp_path / 'left')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    assert fails(capsys, path) == f'{path}: connection refused; the program that created the socket has ended'


def test_the_path_is_not_a_socket(capsys, tmp_path):
    path = tmp_path / 'file'
    path.touch()
    assert (
        fails(capsys, str(path))
        == f'{path}: not a socket; give the path that the program passed to observe.serve_control'
    )
    assert fails(capsys, str(path / 'x')).endswith('Not a directory')
    assert 'too long' in fails(capsys, str(tmp_path / ('x' * 200)))


@pytest.mark.parametrize(
    ('mode', 'why'), [(0o755, ': the socket belongs to user '), (0o700, ': its folder is not accessible')]
)
def test_access_to_the_socket_is_not_permitted(capsys, mode, why):
    folder = tempfile.mkdtemp()  # pytest's own folders cannot be accessed by other users
    path = os.path.join(folder, 'control')
    me = os.geteuid()
    try:
        with Reactor() as r:
            observe.serve_control(r, path)
            os.chmod(folder, mode)
            if me == 0:
                os.seteuid(65534)
            elif mode == 0o700:
                os.chmod(folder, 0o000)
            else:
                os.chmod(path, 0o000)
            try:
                error = fails(capsys, path)
            finally:
                if me == 0:
                    os.seteuid(0)
                os.chmod(folder, 0o700)
        assert error.startswith(f'{path}: not permitted{why}')
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def impostor(tmp_path):
    """`impostor(answer)` listens as another program, sends `answer` to one request, and returns the path."""
    path = str(tmp_path / 'impostor')
    threads = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)

        def serve(answer):
            def run():
                conn, _ = server.accept()
                with conn:
                    conn.recv(65536)
                    conn.sendall(answer)

            threads.append(threading.Thread(target=run))
            threads[0].start()
            return path

        yield serve
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ('answer', 'why'),
    [
        (b'', 'the program has ended, or closed its control socket'),
        (b'{"ok": tr', 'the program has ended, or closed its control socket'),
        (b'HTTP/1.1 400 Bad Request\r\n', 'the server at this path is not a reactor control socket'),
        (b'[]\n', 'the server at this path is not a reactor control socket'),
        (b'{"ok": false, "error": "\\u001b[2J"}\n', 'stats: ?[2J'),
    ],
)
def test_invalid_answers(capsys, impostor, answer, why):
    path = impostor(answer)
    assert fails(capsys, path) == f'{path}: {why}'


def test_no_answer_in_time(capsys, tmp_path):
    path = str(tmp_path / 'silent')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        error = fails(capsys, path, '--timeout', '0.05')
        assert error.startswith(f'{path}: no answer within 0.05 s: the loop is blocked')
        if hasattr(socket, 'SO_PEERCRED'):
            assert f'py-spy dump --pid {os.getpid()} ' in error


def test_if_the_platform_cannot_report_the_process_id_the_hint_says_pid(capsys, tmp_path, monkeypatch):
    monkeypatch.delattr(socket, 'SO_PEERCRED', raising=False)
    path = str(tmp_path / 'silent')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        assert 'py-spy dump --pid PID ' in fails(capsys, path, '--timeout', '0.05')


def test_by_default_an_answer_may_take_ten_seconds():
    assert 'seconds to wait for an answer (default 10)' in ' '.join(command.parser().format_help().split())


def test_a_refused_command_is_an_error(capsys, path):
    assert 'handles: limit must be the number of entries to list, 1 to 1000 (default 100), not 5000' in fails(
        capsys, path, 'handles', '--limit', '5000'
    )


@pytest.mark.skipif(sys.platform != 'linux', reason='other kernels refuse the client at once')
def test_a_full_backlog_is_reported_within_the_timeout_for_answers(capsys, tmp_path):
    path = str(tmp_path / 'full')
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(path)
        server.listen(0)
        waiting.connect(path)
        began = time.monotonic()
        assert (
            fails(capsys, path, '--timeout', '0.05')
            == f'{path}: the backlog is full, because too many clients are waiting; try again later'
        )
        assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ('arguments', 'why'),
    [
        ([], 'give the path of a control socket'),
        (['/x', 'nonsense\x1b'], "unknown command 'nonsense?'; the commands are help, stats"),
        (['/x', 'drain', '--watch', '1'], 'drain cannot be repeated'),
        (['/x', '--watch', '0'], 'not a number of seconds above 0'),
        (['/x', '--watch', 'nan'], 'not a number of seconds above 0'),
        (['/x', '--timeout', 'x'], 'not a number of seconds above 0'),
        (['/x', 'stats', '--limit', '5'], '--limit is an option of handles, why_alive and top, not of stats'),
        (['/x', 'stats', '--lame-duck', '5'], '--lame-duck is an option of drain, not of stats'),
        (['/x', 'handles', '--limit', 'x'], 'invalid int value'),
    ],
)
def test_a_mistyped_argument_is_reported_in_one_line(capsys, arguments, why):
    assert why in mistyped(capsys, *arguments)


# -- the report for bug reports


def test_the_report_shows_versions_limits_and_features(capsys):
    assert command.main(['--report']) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'reactor {reactor.__version__}\n')
    for name in 'Python', 'platform', 'SOMAXCONN', 'selector', 'SO_REUSEPORT', 'sendfile', 'pidfd_open', 'OpenSSL':
        assert name in out
    if sys.platform == 'linux':
        assert re.search(r'^RLIMIT_NOFILE +[\d,]+ of ', out, re.M)
        assert re.search(r'^net/ipv4/ip_local_port_range +\d+ \d+$', out, re.M)
        assert re.search(r'^selector +EpollSelector; ', out, re.M)


def test_the_report_contains_nothing_private(monkeypatch):
    monkeypatch.setenv('SECRET_TOKEN', 'hunter2hunter2')
    monkeypatch.setattr(socket, 'gethostname', lambda: 'secrethost')
    text = '\n'.join(report())
    for private in 'hunter2', 'SECRET_TOKEN', 'secrethost', os.uname().nodename, os.path.expanduser('~') + '/':
        assert not re.search(rf'(?<!\w){re.escape(private)}', text), private
    assert os.getcwd() not in text


def test_with_a_socket_the_report_also_has_the_counters(path, capsys):
    assert command.main(['--report', path]) == 0
    out = capsys.readouterr().out
    assert 'RLIMIT_NOFILE' in out and 'loop_count' in out and 'completions' in out


@pytest.mark.parametrize('name', ['AF_UNIX', 'SO_REUSEPORT', 'TCP_DEFER_ACCEPT'])
@pytest.mark.parametrize(('number', 'there'), [(-1, 'no'), (0, 'yes'), (9, 'yes')])
def test_the_report_says_which_features_the_platform_has(monkeypatch, name, number, there):
    monkeypatch.setattr(report_module.platforms, name, number)  # -1: the platform has no such constant
    shown = {'AF_UNIX': 'Unix sockets'}.get(name, name)
    assert re.search(rf'^{shown} +{there}$', '\n'.join(report()), re.M)


def test_the_report_works_without_optional_features_and_libraries(monkeypatch):
    monkeypatch.setattr(report_module, 'resource', None)
    monkeypatch.setattr(report_module, 'SYSCTLS', ('no/such/thing',))
    monkeypatch.setattr(report_module, 'LIBRARIES', ('no-such-library',))
    monkeypatch.delattr(os, 'pidfd_open', raising=False)
    monkeypatch.delattr(os, 'sysconf', raising=False)
    text = '\n'.join(report())
    assert 'not installed' in text and re.search(r'pidfd_open +no', text) and re.search(r'memory +unknown', text)
