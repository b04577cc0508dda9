"""One view of all workers on the parent's control socket, whatever a worker does: hang, start, drain or end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from reactor import Reactor, observe
from reactor.observe.asking import ControlClient, NoAnswer
from reactor.serve.messages import MOST_QUESTIONS
from reactor.serve.slot import Slot
from reactor.serve.survey import PATIENCE
from reactor.serve.workers import Workers
from tests.helpers.support import run_until

if os.name != 'posix':
    pytest.skip('NOT TESTED: workers, which need POSIX', allow_module_level=True)

PROJECT = Path(__file__).parents[2]
PROGRAM = PROJECT / 'tests' / 'helpers' / 'observed_program.py'


class Program:
    """A running program with workers, and clients connected to them."""

    def __init__(self, folder: Path, workers: int = 2, **settings: Any) -> None:
        self.path = str(folder / 'control')
        self.log = folder / 'log'
        self.conns: list[socket.socket] = []
        text = json.dumps({'control': self.path, 'workers': workers, **settings})
        with self.log.open('wb') as log:
            self.parent = subprocess.Popen(
                [sys.executable, str(PROGRAM), text], stdout=subprocess.PIPE, stderr=log, cwd=PROJECT, process_group=0
            )
        self.port = int(self.parent.stdout.readline())
        self.client = ControlClient(self.path, 20)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.disconnect()
        with suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.communicate()

    def disconnect(self) -> None:
        while self.conns:
            self.conns.pop().close()

    def receive(self) -> str:
        """Return the next line from the last connection."""
        line = b''
        while not line.endswith(b'\n'):
            line += self.conns[-1].recv(100)
        return line.decode()

    def workers(self, count: int = 2) -> dict[str, int]:
        """Wait until `count` workers serve; return {name: process id}."""
        end = time.monotonic() + 20
        while True:
            found = self.client.ask('handles', limit=1)['workers']
            if len(found) == count and all(one['state'] == 'serving' for one in found):
                return {one['worker']: one['pid'] for one in found}
            assert time.monotonic() < end, found
            time.sleep(0.02)

    def send(self, line: bytes) -> tuple[int, str]:
        """Send a line on a new connection, which stays open; return the worker's process id and name."""
        self.conns.append(socket.create_connection(('127.0.0.1', self.port), timeout=20))
        self.conns[-1].sendall(line + b'\n')
        pid, slot = self.receive().split()
        return int(pid), slot

    def send_to(self, worker: str, line: bytes) -> None:
        """Send a line to this worker. The kernel decides which worker accepts a connection, so try until it is."""
        while True:
            if self.send(b'which')[1] == worker:
                self.conns[-1].sendall(line + b'\n')
                self.receive()
                return
            self.conns.pop().close()

    def command(self, *arguments: str) -> list[str]:
        """Run `python -m reactor.observe`; return the lines it prints."""
        words = [sys.executable, '-m', 'reactor.observe', self.path, *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, cwd=PROJECT)
        assert (done.returncode, done.stderr) == (0, '')
        return done.stdout.splitlines()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    with Program(tmp_path_factory.mktemp('program')) as program:
        program.pids = program.workers()
        yield program


@pytest.fixture
def program(shared):
    """A program for all tests that do not change it; its two workers serve."""
    yield shared
    shared.disconnect()


def only(answer: dict[str, Any], worker: str) -> dict[str, Any]:
    (found,) = (one for one in answer['workers'] if one['worker'] == worker)
    return found


# -- all workers


def test_each_worker_lists_its_own_handles(program):
    pid, worker = program.send(b'x')
    answer = program.client.ask('handles')
    assert {one['worker']: one['pid'] for one in answer['workers']} == program.pids and program.pids[worker] == pid
    assert all(one['kinds']['Listener'] == 1 for one in answer['workers'])
    mine = program.conns[-1].getsockname()
    shown = [handle['handle'] for handle in only(answer, worker)['handles']]
    assert any(f':{mine[1]}' in handle for handle in shown)
    (other,) = set(program.pids) - {worker}
    assert not any(f':{mine[1]}' in handle['handle'] for handle in only(answer, other)['handles'])


def test_the_options_of_a_command_reach_the_workers(program):
    answer = program.client.ask('handles', kind='Listener', limit=1)
    assert [len(one['handles']) for one in answer['workers']] == [1, 1]
    assert all('Listener' in one['handles'][0]['handle'] for one in answer['workers'])
    answer = program.client.ask('why_alive', limit=1)
    assert [len(one['reasons']) for one in answer['workers']] == [1, 1]


def test_stats_has_the_counters_of_this_moment(program):
    pid, worker = program.send(b'x')
    for _ in range(5):  # the reports are up to a second old, these counters are not
        before = program.client.ask('stats')
        program.conns[-1].sendall(b'y\n')
        program.receive()
        after = program.client.ask('stats')
        grown = {name: after['workers'][name]['reads'] - before['workers'][name]['reads'] for name in program.pids}
        assert grown[worker] >= 1 and after['workers'][worker]['pid'] == pid
        assert after['sum']['reads'] == sum(one['reads'] for one in after['workers'].values())
        assert after['silent'] == {}


def test_phases_are_those_of_the_workers(program):
    answer = program.client.ask('phases')
    assert set(answer['workers']) == {'0', '1'} and answer['silent'] == {}
    assert answer['sum']['loop_count'] == sum(one['loop_count'] for one in answer['workers'].values())


def test_the_command_prints_a_heading_for_each_worker(program):
    lines = program.command('handles', 'why-alive')
    headings = [f'worker {name} (pid {pid})' for name, pid in program.pids.items()]
    assert [line for line in lines if line.startswith('worker ')] == headings * 2
    assert sum(bool(re.fullmatch(r'\d+ open: .*1 Listener.*', line)) for line in lines) == 2
    assert sum('<Listener ' in line for line in lines) >= 2
    first = program.command()[0]
    assert first.startswith('reactor ') and all(str(pid) in first for pid in program.pids.values())


def test_one_worker_or_the_parent_can_be_asked(program):
    answer = program.client.ask('handles', worker='1')
    assert [one['pid'] for one in answer['workers']] == [program.pids['1']]
    answer = program.client.ask('stats', worker='1')
    assert set(answer['workers']) == {'1'} and answer['sum']['loop_count'] == answer['workers']['1']['loop_count']
    parent = program.client.ask('handles', worker='parent')
    assert parent['kinds']['Process'] == 2 and 'workers' not in parent
    reasons = program.client.ask('why_alive', worker='parent')['reasons']
    assert sum('Process' in reason for reason in reasons) == 2, reasons
    assert program.command('handles', '--worker', '1')[0] == f'worker 1 (pid {program.pids["1"]})'
    assert '2 Process' in program.command('handles', '--worker', 'parent')[0]


def test_an_unknown_worker_is_an_error(program):
    with pytest.raises(NoAnswer, match="there is no worker '7'; stats lists the workers"):
        program.client.ask('handles', worker='7')
    with pytest.raises(NoAnswer, match='worker must be the worker to ask, such as 0, or parent'):
        program.client.ask('handles', worker=7)
    with pytest.raises(NoAnswer, match='unknown argument'):
        program.client.ask('drain', worker='0')


def test_help_lists_the_argument(program):
    commands = program.client.ask('help')['commands']
    assert {name for name, one in commands.items() if 'worker' in one['arguments']} == {
        'stats', 'phases', 'handles', 'why_alive', 'top',
    }  # fmt: skip


def test_requests_sent_at_once_are_answered_in_order_and_the_last_needs_no_line_break(program):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(program.path)
        sock.sendall(b'handles\nhelp\n\nnonsense\nstats\nwhy_alive')
        sock.shutdown(socket.SHUT_WR)
        lines = sock.makefile('rb').readlines()
    parts = ['"kinds"', '"commands"', '"error"', '"sum"', '"reasons"']
    assert len(lines) == len(parts) and all(part in line.decode() for part, line in zip(parts, lines, strict=True))


def test_several_clients_ask_at_the_same_time(program):
    answers = []

    def ask() -> None:
        with ControlClient(program.path, 20) as client:
            answers.extend(client.ask('handles') for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 120 and not any('error' in one for answer in answers for one in answer['workers'])


def test_a_client_that_leaves_before_the_answer_does_no_harm(program):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(program.path)
            sock.sendall(b'handles\nstats\n')
    assert program.workers() == program.pids
    assert 'Traceback' not in program.log.read_text()


# -- a worker in trouble


def test_a_stopped_worker_is_named_and_delays_the_others_by_a_second(tmp_path):
    with Program(tmp_path) as program:
        pids = program.workers()
        os.kill(pids['0'], signal.SIGSTOP)
        began = time.monotonic()
        answer = program.client.ask('handles')
        assert PATIENCE * 0.9 <= time.monotonic() - began < PATIENCE + 2
        hung = only(answer, '0')
        assert hung['pid'] == pids['0'] and 'kinds' not in hung and 'no answer within 1 s' in hung['error']
        assert f'py-spy dump --pid {pids["0"]}' in hung['error'] and only(answer, '1')['kinds']['Listener'] == 1

        stats = program.client.ask('stats')
        assert set(stats['silent']) == {'0'} and set(stats['workers']) == {'0', '1'}  # its last report is shown
        seconds = []
        for _ in range(3):  # the machine may be busy
            began = time.monotonic()
            assert 'error' not in only(program.client.ask('handles', worker='1'), '1')
            assert program.client.ask('handles', worker='parent')['kinds']['Process'] == 2
            seconds.append(time.monotonic() - began)
        assert min(seconds) < PATIENCE * 0.9
        lines = program.command('handles', 'stats')
        at = lines.index(f'worker 0 (pid {pids["0"]})')
        assert lines[at + 1].startswith('no answer within 1 s: ')
        assert f'worker 1 (pid {pids["1"]})' in lines
        assert any(line.startswith('worker 0: no answer within 1 s: ') for line in lines)

        os.kill(pids['0'], signal.SIGCONT)
        answer = program.client.ask('handles')
        assert not any('error' in one for one in answer['workers'])
        assert program.workers() == pids


def test_a_blocked_worker_is_asked_a_bounded_number_of_questions_and_recovers(tmp_path):
    with Program(tmp_path, workers=1) as program:
        (pid,) = program.workers(1).values()
        os.kill(pid, signal.SIGSTOP)
        clients = [ControlClient(program.path, 20) for _ in range(7)]
        for _ in range(3):
            threads = [threading.Thread(target=client.ask, args=('handles',)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        os.kill(pid, signal.SIGCONT)
        end = time.monotonic() + 20
        while 'error' in program.client.ask('handles')['workers'][0]:
            assert time.monotonic() < end
        for client in clients:
            client.close()
        assert program.workers(1) == {'0': pid}
        assert 'Traceback' not in program.log.read_text()


SILENT_CHILD = """
import json, os, time
settings = json.loads(os.environ['REACTOR_WORKER'])
os.write(settings['control'], b'[{"pid": 1}, false]\\n')
time.sleep(60)
"""


@pytest.fixture
def silent():
    """The parent's side of a worker that reports once and then reads nothing: a reactor, the workers, and the child."""
    with Reactor() as r:
        workers = Workers(r, [sys.executable, '-S', '-E', '-c', SILENT_CHILD], [], 5, 60, None)
        workers.slots = [Slot(workers, 0)]
        workers.slots[0].start()
        run_until(r, lambda: workers.slots[0].serving)
        child = workers.slots[0].serving
        yield r, workers, child
        kill(workers, child)
        run_until(r, lambda: not workers.leaving)


def kill(workers: Workers, child: Any) -> None:
    """Kill the worker, which is not replaced."""
    if workers.slots:
        workers.slots.clear()
        workers.leaving.add(child)
        child.process.kill()


def test_a_worker_that_does_not_read_gets_no_more_questions(silent, monkeypatch):
    monkeypatch.setattr('reactor.serve.survey.PATIENCE', 0.01)
    r, workers, child = silent
    sent = []
    write = child.control.write
    monkeypatch.setattr(
        type(child.control), 'write', lambda conn, data: sent.append(data) or write(data), raising=False
    )
    answers: list[Any] = []
    for number in range(3 * MOST_QUESTIONS):
        workers.ask('["why_alive", {}]', answers.append)
        run_until(r, lambda wanted=number + 1: len(answers) == wanted)
        ((worker, text),) = answers[-1]
        assert (worker.name, worker.pid, text) == ('0', child.process.pid, None)
    assert len(sent) == MOST_QUESTIONS


def test_late_answers_and_answers_of_an_ended_worker_are_no_error(silent, monkeypatch, caplog):
    monkeypatch.setattr('reactor.serve.survey.PATIENCE', 0.05)
    r, workers, child = silent
    answers: list[Any] = []
    workers.ask('["why_alive", {}]', answers.append)
    run_until(r, lambda: answers)
    child.on_line(child.control, b'["answer", 0, "late"]')
    assert len(answers) == 1
    monkeypatch.setattr('reactor.serve.survey.PATIENCE', 60)
    workers.ask('["why_alive", {}]', answers.append)
    kill(workers, child)
    run_until(r, lambda: len(answers) == 2)
    assert answers[1][0].text == '{"error": "the worker has ended"}'
    assert 'exception' not in caplog.text


def test_an_exception_while_answering_a_client_does_not_harm_the_worker(silent, caplog):
    r, workers, child = silent
    answers: list[Any] = []

    def on_answers(given):
        answers.append(given)
        raise ZeroDivisionError

    workers.ask('["why_alive", {}]', on_answers)
    child.on_line(child.control, b'["answer", 0, "text"]')
    run_until(r, lambda: answers)
    assert answers[0][0].text == 'text' and not child.control.closed and 'ZeroDivisionError' in caplog.text


def test_a_worker_that_is_killed_while_it_is_asked_is_named_at_once(tmp_path):
    with Program(tmp_path) as program:
        pids = program.workers()
        os.kill(pids['0'], signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (pids['0'], signal.SIGKILL))
        killer.start()
        answer = program.client.ask('handles')
        killer.join()
        assert [one['error'] for one in answer['workers'] if 'error' in one] == ['the worker has ended']
        assert only(answer, '1')['kinds']
        assert program.workers()['1'] == pids['1']


def test_a_worker_that_is_starting_is_named_without_waiting(tmp_path):
    hang = tmp_path / 'hang'
    with Program(tmp_path, hang=str(hang)) as program:
        pids = program.workers()
        hang.touch()
        program.parent.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while len(answer := program.client.ask('handles')['workers']) < 3:
            assert time.monotonic() < end
        (starting,) = (one for one in answer if one['state'] == 'starting')
        assert starting['error'] == 'the worker is still starting'
        assert re.fullmatch(r'0-\d+', starting['worker']) and starting['worker'] == f'0-{starting["pid"]}'
        assert {one['pid'] for one in answer if one['state'] == 'serving'} == set(pids.values())
        hang.unlink()


def test_a_predecessor_that_drains_is_asked_too(tmp_path):
    with Program(tmp_path) as program:
        pids = program.workers()
        pid, worker = program.send(b'wait')
        program.parent.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while True:
            answer = program.client.ask('handles')
            leaving = [one for one in answer['workers'] if one['state'] == 'draining' and one['pid'] == pid]
            if leaving:
                break
            assert time.monotonic() < end, answer
        (old,) = leaving
        assert old['worker'] == f'{worker}-{pid}' and old['pid'] == pids[worker]
        port = program.conns[-1].getsockname()[1]
        assert any(f':{port}' in handle['handle'] for handle in old['handles'])
        assert only(answer, worker)['pid'] != pid
        assert f'worker {worker}-{pid} (pid {pid}, draining)' in program.command('why-alive')
        stats = program.client.ask('stats')
        assert stats['workers'][f'{worker}-{pid}']['pid'] == pid
        one = program.client.ask('handles', worker=f'{worker}-{pid}')
        assert [found['pid'] for found in one['workers']] == [pid]


def test_a_handle_whose_description_raises_is_an_error_of_its_worker_alone(tmp_path):
    with Program(tmp_path) as program:
        program.workers()
        program.send_to('0', b'broken')
        answer = program.client.ask('handles')
        assert only(answer, '0')['error'] == 'ValueError: broken; see the log for the traceback'
        assert 'error' not in only(answer, '1')
        assert re.search(r'ERROR worker 0 \(pid \d+\) reactor: exception while describing', program.log.read_text())


def test_the_answer_about_18000_handles_is_bounded(tmp_path):
    with Program(tmp_path) as program:
        program.workers()
        for worker in '0', '1':
            program.send_to(worker, b'notifiers 18000')
        for command in 'handles', 'why_alive':
            for arguments, listed in ({}, 100), ({'limit': 1000}, 500), ({'limit': 1000, 'worker': '0'}, 1000):
                began = time.monotonic()
                answer = program.client.ask(command, **arguments)
                assert time.monotonic() - began < 3
                for one in answer['workers']:
                    assert len(one.get('handles') or one['reasons']) == listed, (command, arguments)
                    assert one['more'] if command == 'why_alive' else one['left_out'] + listed >= 18000
        lines = program.command('handles')
        assert len(lines) < 2 * 100 + 20 and sum('18,0' in line and ' open: ' in line for line in lines) == 2


# -- arguments


def test_without_workers_the_argument_is_refused_and_nothing_has_changed(r, tmp_path):
    control = observe.serve_control(r, str(tmp_path / 'control'))
    commands = control._commands
    assert b'unknown argument' in commands.answer(b'{"do": "handles", "worker": "0"}')
    assert set(json.loads(commands.answer(b'handles'))) == {'ok', 'kinds', 'handles', 'left_out'}
    assert set(json.loads(commands.answer(b'stats'))) == {'ok', 'version', 'clock', 'draining', 'workers', 'sum'}
    control.close()


def test_something_else_than_workers_is_refused(r, tmp_path):
    with pytest.raises(TypeError, match='workers must be the `Workers`'):
        observe.serve_control(r, str(tmp_path / 'control'), workers=2)
    assert not (tmp_path / 'control').exists()
