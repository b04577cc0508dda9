"""Workers share a port, and are restarted, replaced and drained; clients of a dead worker are served by the next."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from reactor import Reactor, ReactorError, serve
from reactor.serve import addresses
from reactor.serve.addresses import ListenAddress, parse
from reactor.serve.health import WorkerState
from reactor.serve.running import processors
from reactor.serve.slot import Slot
from reactor.serve.worker import Worker
from reactor.serve.worker_process import WorkerProcess
from reactor.serve.workers import Workers
from tests.helpers.machine import HELD
from tests.helpers.support import run_until, turns

if os.name != 'posix':
    pytest.skip('workers inherit descriptors, which this platform does not support', allow_module_level=True)

PROJECT = Path(__file__).parents[2]
PROGRAM = PROJECT / 'tests' / 'helpers' / 'serve_program.py'
HERE = '127.0.0.1'
LINUX = pytest.mark.skipif(
    sys.platform != 'linux', reason='only Linux distributes clients among the sockets on one port'
)


def wait_until(holds, seconds=20):
    """Wait until `holds()` is true and return its result."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, 'not in time'
        time.sleep(0.01)
    return found


class Served:
    """A running program: its parent, its workers, and clients connected to the workers."""

    def __init__(self, folder: Path, *, before: Any = (), start: Any = (), **settings: Any) -> None:
        self.watch = str(folder / 'watch')
        run = {'workers': 1, 'listen': [f'{HERE}:0'], 'drain_timeout': 5, 'lame_duck': 0, **settings.pop('run', {})}
        text = json.dumps({'watch': self.watch, 'run': run, **settings})
        self.errors = folder / 'errors'
        self.clients: list[Client] = []
        with self.errors.open('wb') as errors:
            self.parent = subprocess.Popen(
                [sys.executable, *before, *(start or [str(PROGRAM)]), text],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=PROJECT, process_group=0,
            )  # fmt: skip
        line = self.parent.stdout.readline()
        assert line, self.log
        self.addresses = [tuple(address) if type(address) is list else address for address in json.loads(line)]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc: Any) -> None:
        for client in self.clients:
            client.sock.close()
        with suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)  # including workers and processes that are still starting
        self.parent.communicate()

    @property
    def log(self) -> str:
        return self.errors.read_text()

    def look(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.watch)
            return json.loads(b''.join(iter(lambda: sock.recv(65536), b'')))

    def pids(self, count=1) -> dict[str, int]:
        """Wait until `count` workers serve; return {slot: process id}."""
        return wait_until(lambda: len(found := self.look()['pids']) == count and found)

    def connect(self) -> Client:
        self.clients.append(Client(self.addresses[0]))
        return self.clients[-1]

    def send(self, signum: int) -> None:
        self.parent.send_signal(signum)

    def ended(self, seconds=20) -> int:
        return self.parent.wait(seconds)


class Client:
    """A client of a worker, which answers each line with a line."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.create_connection(address, timeout=20)

    def send(self, what: str) -> None:
        self.sock.sendall(what.encode() + b'\n')

    def receive(self) -> str:
        """Return the next line, or '' at end of file."""
        line = b''
        while not line.endswith(b'\n') and (byte := self.sock.recv(1)):
            line += byte
        return line.decode().rstrip('\n')

    def ask(self, what: str = 'x') -> str:
        self.send(what)
        return self.receive()

    def pid(self) -> int:
        """Return the id of the process that answers."""
        return int(self.ask().split()[0])


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- serving


@LINUX
def test_workers_share_the_clients_of_a_port_and_the_parent_has_their_counters(tmp_path):
    with Served(tmp_path, run={'workers': 2}) as served:
        pids = served.pids(2)
        conns = [served.connect() for _ in range(200)]
        counts = Counter(conn.pid() for conn in conns)
        assert set(counts) == set(pids.values())
        assert min(counts.values()) > 60  # the mean is 100, and three standard deviations are 21
        accepted = lambda: {slot: stats['accepts'] for slot, stats in served.look()['stats'].items()}  # noqa: E731
        wait_until(lambda: accepted() == {slot: counts[pid] for slot, pid in pids.items()})
        stats = served.look()['stats']
        assert {slot: figures['pid'] for slot, figures in stats.items()} == pids
        assert sum(figures['incoming'] for figures in stats.values()) == 200


@pytest.mark.scenario(114)
def test_a_worker_has_only_the_descriptors_it_needs_and_none_is_inheritable(tmp_path):
    with Served(tmp_path, run={'workers': 2}) as served:
        served.pids(2)
        answer = json.loads(served.connect().ask('?'))
        # These are three standard streams, the selector, two for the wakeup, the parent, the listener, this connection,
        # and the directory that is being listed.
        assert answer['fds'] == 10
        assert answer['inheritable'] == 0 and not set(answer['variables']) - {HELD}


@pytest.mark.parametrize('start', [[str(PROGRAM)], ['-m', 'tests.helpers.serve_program']], ids=['script', 'module'])
def test_a_worker_is_started_with_the_arguments_and_options_of_the_program(tmp_path, start):
    with Served(tmp_path, before=['-W', 'error::BytesWarning', '-X', 'dev'], start=start) as served:
        answer = json.loads(served.connect().ask('?'))
        assert json.loads(answer['argv'][1])['watch'] == served.watch
        assert answer['flags'] == ['default', 'error::BytesWarning', 'dev']
        assert answer['pid'] == served.pids()['0'] != served.parent.pid


@pytest.mark.parametrize(
    'start', [['tests/helpers/serve_program.py'], ['-m', 'tests.helpers.serve_program']], ids=['script', 'module']
)
def test_a_program_that_changes_its_directory_is_started_again_in_the_original_one(tmp_path, start):
    with Served(
        tmp_path, start=start, go='tests'
    ) as served:  # the relative path is only valid in the original directory
        assert served.connect().ask() == f'{served.pids()["0"]} x'


@pytest.mark.parametrize('how', ['-c', '-', 'stdin'])
def test_the_error_for_a_program_that_is_not_a_file_says_what_to_do(how):
    code = 'from reactor import serve; serve.run(print)'
    argv = {'-c': ['-c', code], '-': ['-'], 'stdin': []}[how]
    done = subprocess.run([sys.executable, *argv], input=code, capture_output=True, text=True, timeout=20, cwd=PROJECT)
    assert done.returncode == 1
    assert 'ReactorError: workers start this program again' in done.stderr and 'put it into a file' in done.stderr


def test_all_workers_share_a_unix_socket_and_its_file_is_removed_at_the_end(tmp_path):
    path = str(tmp_path / 'served')
    with Served(tmp_path, run={'workers': 2, 'listen': [f'unix:{path}', f'{HERE}:0']}) as served:
        served.pids(2)
        assert served.addresses[0] == path
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b'x\n')
            assert sock.recv(100).endswith(b' x\n')
        served.send(signal.SIGTERM)
        assert served.ended() == 0
        assert not os.path.exists(path)


@pytest.mark.parametrize('umask', [0o000, 0o077])
@pytest.mark.parametrize('text, mode', [('0660', 0o660), ('600', 0o600), ('0666', 0o666)])
def test_the_file_of_a_unix_socket_has_the_mode_in_its_address_whatever_the_umask(tmp_path, umask, text, mode):
    path = tmp_path / 'served'
    before = os.umask(umask)
    try:
        address = ListenAddress(f'unix:{path}?mode={text}', 10)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode and address.socket_for_worker().getsockname() == str(path)
    address.remove()
    assert not path.exists()


def test_workers_serve_on_a_unix_socket_with_a_mode(tmp_path):
    path = tmp_path / 'served'
    with Served(tmp_path, run={'listen': [f'unix:{path}?mode=0606']}) as served:
        before = served.pids()
        assert served.addresses[0] == str(path) and stat.S_IMODE(path.stat().st_mode) == 0o606
        served.send(signal.SIGHUP)
        wait_until(lambda: served.look()['pids'] != before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o606
        served.send(signal.SIGTERM)
        assert served.ended() == 0 and not path.exists()


# -- crashes


@pytest.mark.scenario(110)
def test_clients_in_the_queue_of_a_killed_worker_are_served_by_the_next(tmp_path):
    with Served(tmp_path) as served:
        old = served.pids()['0']
        os.kill(old, signal.SIGSTOP)
        waiting = [served.connect() for _ in range(20)]
        for conn in waiting:
            conn.send('x')
        os.kill(old, signal.SIGKILL)
        answers = {conn.receive() for conn in waiting}
        new = served.pids()['0']
        assert answers == {f'{new} x'} and new != old
        assert served.log.count('\n') == 1 and f'worker 0 (pid {old}) ended unexpectedly (signal 9)' in served.log


@pytest.mark.scenario(111)
def test_a_worker_that_keeps_crashing_is_restarted_less_and_less_often_until_it_works(tmp_path):
    fail = tmp_path / 'fail'
    fail.touch()
    with Served(tmp_path, fail=str(fail)) as served:
        conn = served.connect()  # this client waits in the queue until a worker serves
        wait_until(lambda: 'restarting in 0.4 s' in served.log)
        pauses = re.findall(r'ended unexpectedly \(exit code 1\); restarting in ([\d.]+) s', served.log)
        assert pauses == ['0.1', '0.2', '0.4']
        assert served.look()['pids'] == {}
        fail.unlink()
        served.send(signal.SIGHUP)  # a reload ends the pause
        assert conn.pid() == served.pids()['0']


@LINUX
@pytest.mark.parametrize('failing', [0, 1])
def test_no_client_hangs_on_the_socket_of_a_worker_that_cannot_start(tmp_path, failing):
    fail = tmp_path / 'fail'
    fail.touch()
    with Served(tmp_path, fail=str(fail), slots=[failing], run={'workers': 2}) as served:
        wait_until(lambda: 'restarting in 0.4 s' in served.log)
        (alive,) = served.pids(1).values()
        assert {served.connect().pid() for _ in range(40)} == {alive}
        fail.unlink()
        served.send(signal.SIGHUP)
        pids = set(served.pids(2).values())
        wait_until(lambda: {served.connect().pid() for _ in range(20)} == set(served.pids(2).values()))
        assert len(pids) == 2


@LINUX
def test_no_client_hangs_on_the_socket_of_a_worker_that_takes_long_to_start(tmp_path):
    hang = tmp_path / 'hang'
    hang.touch()
    with Served(tmp_path, hang=str(hang), slots=[1], run={'workers': 2}) as served:
        (alive,) = served.pids(1).values()
        assert {served.connect().pid() for _ in range(40)} == {alive}
        hang.unlink()
        wait_until(lambda: {served.connect().pid() for _ in range(20)} == set(served.pids(2).values()))


@LINUX
def test_while_no_worker_serves_clients_wait_for_the_first_worker(tmp_path):
    fail = tmp_path / 'fail'
    fail.touch()
    with Served(tmp_path, fail=str(fail), run={'workers': 2}) as served:
        wait_until(lambda: served.log.count('restarting in 0.2 s') == 2)
        conns = [served.connect() for _ in range(10)]
        wait_until(lambda: served.log.count('restarting in 0.4 s') == 2)
        conns += [served.connect() for _ in range(10)]
        fail.unlink()
        served.send(signal.SIGHUP)
        answers = Counter()
        for conn in conns:
            with suppress(
                ConnectionResetError
            ):  # this client was in the second socket's queue when the first worker served
                answers[conn.pid()] += 1
        assert sum(answers.values()) >= 10 and set(answers) <= set(served.pids(2).values())


def hung(worker: int, conn: Client, how: str) -> None:
    """Make a worker hang."""
    if how == 'stopped':
        os.kill(worker, signal.SIGSTOP)
    else:
        conn.send('block 60')


@pytest.mark.parametrize('how', ['stopped', 'blocked'])
def test_a_worker_that_hangs_is_logged_killed_and_replaced_and_its_queue_is_served(tmp_path, how):
    with Served(tmp_path, run={'hang_timeout': 2}) as served:
        first = served.connect()
        worker = first.pid()
        hung(worker, first, how)
        waiting = served.connect()  # this client is in the queue of the hung worker
        waiting.send('x')
        assert int(waiting.receive().split()[0]) != worker
        assert 'has not reported for 2 s: it' in served.log
        assert 'has not reported for 3 s: killing it' in served.log
        assert 'ended unexpectedly (signal 9)' in served.log
        served.send(signal.SIGTERM)
        assert served.ended() == 0


def test_workers_that_were_stopped_with_their_parent_do_not_count_as_hung(tmp_path):
    with Served(tmp_path, run={'hang_timeout': 2}) as served:
        worker = served.connect().pid()
        os.killpg(served.parent.pid, signal.SIGSTOP)
        time.sleep(6)
        os.killpg(served.parent.pid, signal.SIGCONT)
        reports = lambda: served.look()['stats']['0']['loop_count']  # noqa: E731
        before = reports()
        wait_until(lambda: reports() > before)
        assert served.connect().pid() == worker and 'has not reported' not in served.log


class Team:
    """Replaces the team, the slot and the process of a `WorkerProcess`."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.killed = 0
        self.number, self.pid = 0, 1
        self.serving = self.starting = None
        self.leaving: set[Any] = set()
        self.r, self.now = self, 0.0

    def send_signal(self, signum: int) -> None:
        self.signals.append(signum)

    def kill(self) -> None:
        self.killed += 1


def silent_child(hang_timeout: float | None) -> Any:
    child = object.__new__(WorkerProcess)
    child.slot = child.team = child.process = Team()
    child.hang_timeout = hang_timeout
    child.silence, child.ready, child.greeted = 0.0, True, True
    return child


def be_silent(child: Any, seconds: float) -> None:
    for _ in range(int(2 * seconds)):  # a worker is checked twice a second
        child.count_silence()


def test_a_worker_that_reports_within_the_grace_period_is_logged_and_kept(caplog):
    child = silent_child(30)
    be_silent(child, 30)
    assert not caplog.records and not child.team.signals
    be_silent(child, 2)
    assert [record.getMessage()[:43] for record in caplog.records] == ['worker 0 (pid 1) has not reported for 30 s:']
    assert child.team.signals == [signal.SIGQUIT]  # it writes its stacks
    child.on_line(None, b'[{}, false]')  # a report from the worker
    be_silent(child, 30)
    assert child.team.killed == 0 and len(caplog.records) == 1


@pytest.mark.parametrize(('hang_timeout', 'grace'), [(30, 2), (2, 1), (3, 1.5)])
def test_a_worker_that_stays_silent_is_killed_after_the_limit_and_the_grace_period(caplog, hang_timeout, grace):
    child = silent_child(hang_timeout)
    be_silent(child, hang_timeout + grace)
    assert child.team.killed == 0
    be_silent(child, 0.5)
    assert child.team.killed == 1 and len(caplog.records) == 2


@pytest.mark.parametrize(('hang_timeout', 'killed'), [(30, 1), (None, 0)])
def test_workers_that_serve_or_drain_are_checked_twice_a_second_and_starting_workers_are_not(
    fake, kernel, monkeypatch, caplog, hang_timeout, killed
):
    monkeypatch.setattr(Slot, 'start', lambda slot: None)
    team = Workers(fake, ['a program'], [], drain_timeout=5, start_timeout=60, hang_timeout=hang_timeout)
    team.begin(2, None)
    team.slots[1].serving = silent = silent_child(hang_timeout)
    draining = silent_child(hang_timeout)
    team.leaving.add(draining)
    for _ in range(65):
        kernel.time += 0.5
        turns(fake, 1)
    assert [child.team.killed for child in (silent, draining)] == [killed, killed]
    assert len(caplog.records) == 4 * killed


def test_a_hang_is_not_detected_when_detection_is_off(tmp_path):
    with Served(tmp_path, run={'hang_timeout': None}) as served:
        conn = served.connect()
        worker = conn.pid()
        os.kill(worker, signal.SIGSTOP)
        time.sleep(4)
        assert 'has not reported' not in served.log and served.pids() == {'0': worker}
        os.kill(worker, signal.SIGCONT)
        assert conn.pid() == worker


def test_the_counters_of_a_worker_that_has_ended_are_dropped(tmp_path):
    fail = tmp_path / 'fail'
    with Served(tmp_path, fail=str(fail)) as served:
        pid = served.pids()['0']
        assert served.look()['stats']['0']['pid'] == pid
        fail.touch()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: 'restarting in 0.2 s' in served.log)
        assert served.look()['stats'] == {}  # no worker serves; the pid of a dead one may be in use again


@pytest.mark.scenario(112)
def test_when_the_parent_is_killed_the_workers_drain_and_exit(tmp_path):
    with Served(tmp_path, run={'workers': 2}) as served:
        pids = served.pids(2)
        conn = served.connect()
        busy = conn.pid()
        conn.send('wait 0.3')
        served.parent.kill()
        assert conn.receive() == f'{busy} wait 0.3'
        assert conn.receive() == ''
        wait_until(lambda: all(map(is_gone, pids.values())))


class WorkerSettings:
    """Settings that make this process a worker; the test has the `parent` side, and `kept`, a copy of the listener."""

    def __init__(self, sockets: Any, of_all: bool = False) -> None:
        parent, control = socket.socketpair()
        listening = socket.create_server((HERE, 0))
        self.parent, self.kept = sockets.track(parent), sockets.track(listening.dup())
        self.address = listening.getsockname()
        listener = listening.detach()
        shared = [listener] if of_all else []
        self.settings = {'slot': 0, 'control': control.detach(), 'listeners': [listener], 'shared': shared}


@LINUX
@pytest.mark.parametrize('of_all', [False, True])
@pytest.mark.parametrize('how', ['its parent has ended', 'it is the last worker'])
def test_the_last_worker_drops_new_connections_in_its_own_queues(sockets, how, of_all):
    given = WorkerSettings(sockets, of_all)
    with Reactor() as r:
        worker = Worker(r, given.settings, (5, 0))
        if how == 'its parent has ended':
            given.parent.close()
        else:  # these lines have arrived before the worker listens
            given.parent.send(b'"last"\n["drain", 5, 0]\n')
        assert r.run(lambda r: worker.begin(lambda r, socks: r.listen_tcp(None, 0, sock=socks[0]) and None)) is False
    late = sockets.track(socket.socket())
    late.settimeout(0.2)
    if of_all:  # another process that has the socket, such as systemd, still listens
        late.connect(given.address)
        given.kept.accept()[0].close()
    else:
        with pytest.raises(TimeoutError):
            late.connect(given.address)


@LINUX
@pytest.mark.parametrize('of_all', [False, True])
def test_a_worker_that_is_replaced_leaves_its_queues_to_its_successor_at_once(fake, sockets, of_all):
    given = WorkerSettings(sockets, of_all)
    # The lame-duck period is as long as the drain timeout, so a worker without a successor would continue accepting.
    worker = Worker(fake, given.settings, (5, 5))
    worker.begin(lambda r, socks: r.listen_tcp(None, 0, sock=socks[0]) and None)
    given.parent.send(b'"replaced"\n')
    turns(fake, 5)
    sockets.connect(given.address)
    turns(fake, 5)
    assert fake.draining and fake.stats().accepts == 0
    given.kept.accept()[0].close()
    worker.control.on_close = None


def test_the_children_of_a_worker_inherit_none_of_its_descriptors(fake, sockets):
    given = WorkerSettings(sockets)
    numbers = [given.settings['control'], *given.settings['listeners']]
    for number in numbers:
        os.set_inheritable(number, True)  # like descriptors that were inherited from the parent
    worker = Worker(fake, given.settings, (5, 0))
    assert [os.get_inheritable(number) for number in numbers] == [False, False]
    worker.control.on_close = None
    for sock in worker.listeners:
        sock.close()


@pytest.mark.scenario(111)
def test_a_worker_that_does_not_become_ready_is_killed(tmp_path):
    hang = tmp_path / 'hang'
    hang.touch()
    with Served(tmp_path, hang=str(hang), run={'start_timeout': 0.5}) as served:
        wait_until(lambda: 'ended unexpectedly (signal 9)' in served.log)
        assert 'is not ready after 0.5 s: killing it' in served.log
        assert served.parent.poll() is None


# -- the parent, with fake processes


class FakeProcess:
    """Replaces `WorkerProcess`; the test calls methods to make it ready and to end it."""

    error: OSError | None = None  # raised when a process is started

    def __init__(self, slot: Slot) -> None:
        if self.error is not None:
            raise self.error
        self.slot, self.ready, self.since = slot, False, 0.0
        self.counters, self.replaced = {}, False
        self.messages: list[str] = []
        slot.team.started.append(self)

    def state(self, name: str) -> WorkerState:
        return WorkerState(name, 'serving' if self.ready else 'starting')

    def be_ready(self) -> None:
        self.ready, self.since = True, self.slot.team.r.now
        self.slot.on_ready(self)

    def drain(self, *times: float) -> None:
        self.messages.append(f'drain {times}')

    def leave(self, replaced: bool = False) -> None:
        self.messages.append('replaced' if replaced else 'last')
        self.slot.team.leaving.add(self)

    def end(self) -> None:
        if self in self.slot.team.leaving:
            self.slot.team.leaving.discard(self)
            self.slot.team.go_on()
        else:
            self.slot.on_failed(self, 'it has ended')


@pytest.fixture
def team(fake, monkeypatch):
    """A parent with two workers that serve on one port; `team.started` lists all processes started so far."""
    monkeypatch.setattr(FakeProcess, 'error', None)
    monkeypatch.setattr('reactor.serve.slot.WorkerProcess', FakeProcess)
    address = ListenAddress((HERE, 0), 10)
    team = Workers(fake, ['a program'], [address], drain_timeout=5, start_timeout=60, hang_timeout=None)
    team.started = []
    team.slots = [Slot(team, 0), Slot(team, 1, listening=False)]
    for slot in team.slots:
        slot.start()
    for child in list(team.started):
        child.be_ready()
    yield team
    team.drain()
    address.remove()


def fail(team: Workers) -> Slot:
    """End the second worker, and make every new start fail."""
    FakeProcess.error = OSError('no more processes')
    team.slots[1].serving.end()
    return team.slots[1]


@LINUX
def test_the_socket_of_a_restarted_worker_does_not_listen_before_it_can_serve(fake, kernel, team):
    slot = fail(team)
    assert slot.listeners == []  # so the kernel queues no client there
    FakeProcess.error = None
    kernel.time += 0.1
    turns(fake, 2)
    (sock,) = slot.listeners
    assert slot.starting and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@LINUX
def test_a_socket_that_cannot_be_opened_again_for_waiting_clients_is_opened_by_the_next_start(
    fake, kernel, team, monkeypatch
):
    def exhausted(*args, **options):
        raise OSError('no more descriptors')

    slot = fail(team)
    with monkeypatch.context() as patched:
        patched.setattr(addresses, 'bound_tcp', exhausted)
        team.slots[0].serving.end()  # no worker serves, so clients should wait at both sockets
        assert slot.listeners == []
    FakeProcess.error = None
    kernel.time += 0.1
    turns(fake, 2)
    assert slot.starting and len(slot.listeners) == 1


def test_a_worker_that_served_for_a_second_is_replaced_at_once_and_its_counters_are_dropped(fake, kernel, team):
    team.slots[0].serving.counters = {'pid': 1}
    assert team.stats() == {'0': {'pid': 1}}
    kernel.time += 1
    turns(fake, 1)
    team.slots[0].serving.end()
    assert team.stats() == {} and team.slots[0].serving is None
    turns(fake, 1)
    assert team.slots[0].starting is team.started[2]


def test_a_reload_starts_each_worker_when_the_previous_one_serves(team):
    old = team.started[:2]
    team.replace()
    assert [child.slot.number for child in team.started[2:]] == [0] and not old[0].messages
    team.started[2].be_ready()
    assert [child.slot.number for child in team.started[2:]] == [0, 1]
    assert [child.messages for child in old] == [['replaced'], []]
    team.started[3].be_ready()
    assert [child.messages for child in old] == [['replaced'], ['replaced']] and len(team.started) == 4


@LINUX
def test_a_worker_whose_socket_cannot_be_opened_is_not_added_and_the_log_says_why(team, monkeypatch, caplog):
    def exhausted(*args, **options):
        raise OSError('no more descriptors')

    second = ListenAddress((HERE, 0), 10)
    second.close(second.socket_for_worker())  # the one that claimed the port
    team.listen_addresses.append(second)  # its sockets come after those of the first address, which stay possible
    opened = []
    with monkeypatch.context() as patched:
        patched.setattr(second, 'socket_for_worker', exhausted)
        patched.setattr(team.listen_addresses[0], 'close', opened.append)
        team.grow()
    for sock in opened:
        sock.close()
    team.listen_addresses.remove(second)
    assert len(opened) == 1  # no socket is left of a worker that was not added
    assert len(team.slots) == 2 and 'cannot add worker 2: no more descriptors' in caplog.text
    team.grow()
    assert len(team.slots) == 3 and team.started[-1].slot is team.slots[2]


def test_the_last_worker_is_not_removed(team):
    team.shrink()
    team.shrink()
    assert [child.messages for child in team.started] == [[], ['last']]
    assert [slot.number for slot in team.slots] == [0]


# -- messages to a worker process


# A worker that reports once, and exits when it was asked to drain. Its exit status is the number of the
# message that the parent has sent before that.
CHILD = """
import json, os
settings = json.loads(os.environ['REACTOR_WORKER'])
os.write(settings['control'], b'[{"slot": %d}, false]\\n' % settings['slot'])
received = b''
while not received.endswith(b'["drain"]\\n'):
    received += os.read(settings['control'], 100)
os._exit({b'"replaced"': 3, b'"last"': 4}[received.split(b'\\n')[0]])
"""


class Observed(WorkerProcess):
    """A `WorkerProcess` that records its exit status."""

    how: tuple[int | None, int | None] | None = None

    def on_exit(self, process, code, signum):
        self.how = code, signum
        super().on_exit(process, code, signum)


def served_by(r: Reactor, code: str) -> tuple[Workers, Any]:
    """Return a parent with one slot, whose worker runs this code and serves."""
    argv = [sys.executable, '-S', '-E', '-c', code]
    team = Workers(r, argv, [], 5, start_timeout=60, hang_timeout=None)
    team.slots = [Slot(team, 7)]
    team.slots[0].start()
    child = team.slots[0].starting
    run_until(r, lambda: child.how or team.slots[0].serving)
    return team, child


@pytest.mark.parametrize(('replaced', 'code'), [(True, 3), (False, 4)])
def test_a_worker_serves_when_it_reports_and_leaves_by_message_and_not_by_signal(monkeypatch, replaced, code):
    monkeypatch.setattr('reactor.serve.slot.WorkerProcess', Observed)
    with Reactor() as r:
        team, child = served_by(r, CHILD)
        assert team.stats() == {'7': {'slot': 7}}
        child.leave(replaced)
        run_until(r, lambda: child.how)
        assert child.how == (code, None)


def test_a_worker_whose_control_connection_is_closed_leaves_by_signal(monkeypatch):
    monkeypatch.setattr('reactor.serve.slot.WorkerProcess', Observed)
    with Reactor() as r:
        without_control = "os.close(settings['control'])\nimport time\ntime.sleep(30)"
        _, child = served_by(r, CHILD.partition('received')[0] + without_control)
        run_until(r, lambda: child.control.closed)
        child.leave()
        run_until(r, lambda: child.how)
        assert child.how == (None, signal.SIGTERM)


def test_a_second_drain_with_less_time_is_passed_on_to_the_workers_that_drain(monkeypatch, caplog):
    monkeypatch.setattr('reactor.serve.slot.WorkerProcess', Observed)
    monkeypatch.setattr('reactor.serve.worker_process.GRACE', 0.1)
    with Reactor() as r:
        team, child = served_by(r, CHILD.replace('"drain"', '"drain", 0.2, 0.1'))
        team.drain()
        team.drain(60, 2)  # this cannot make the time longer
        team.drain(0.2, 0.1)
        run_until(r, lambda: child.how)
        assert child.how == (4, None) and 'killing' not in caplog.text


@pytest.mark.parametrize(
    ('code', 'how'), [('os._exit(3)', 'exit code 3'), ('os.kill(os.getpid(), signal.SIGKILL)', 'signal 9')]
)
def test_a_worker_that_ends_unexpectedly_is_logged_with_its_exit_status(caplog, code, how):
    with Reactor() as r:
        argv = [sys.executable, '-S', '-E', '-c', f'import os, signal; {code}']
        team = Workers(r, argv, [], 5, start_timeout=60, hang_timeout=None)
        team.slots = [Slot(team, 7)]
        team.slots[0].start()
        child = team.slots[0].starting
        run_until(r, lambda: caplog.records)
        team.drain()
    assert f'worker 7 (pid {child.process.pid}) ended unexpectedly ({how}); restarting in 0.1 s' in caplog.text


# -- replacement


@pytest.mark.scenario(110)
def test_a_reload_replaces_the_workers_one_by_one_and_no_client_is_refused(tmp_path):
    with Served(tmp_path, run={'workers': 2}) as served:
        old = set(served.pids(2).values())
        staying, busy = served.connect(), served.connect()
        assert staying.pid() in old
        busy.send('wait 0.3')
        served.send(signal.SIGHUP)
        answered = []

        def replaced():
            answered.append(served.connect().pid())
            return not old & set(served.pids(2).values())

        wait_until(replaced)
        assert int(busy.receive().split()[0]) in old  # an old worker, which is draining, answered
        assert staying.receive() == ''
        assert served.log == ''
        wait_until(lambda: all(map(is_gone, old)))


def test_several_reloads_during_a_reload_cause_one_more_reload(tmp_path):
    with Served(tmp_path, run={'drain_timeout': 1}) as served:
        seen = [served.pids()['0']]
        keeps_it_draining = served.connect()
        keeps_it_draining.send('wait 0.5')
        served.send(signal.SIGHUP)
        wait_until(lambda: served.pids()['0'] != seen[-1])
        seen.append(served.pids()['0'])
        for _ in range(5):  # the replaced worker has not ended, so no new worker is started yet
            served.send(signal.SIGHUP)
            served.look()
        assert served.look()['pids'] == {'0': seen[-1]}
        for _ in range(2):
            wait_until(lambda: served.pids()['0'] != seen[-1])
            seen.append(served.pids()['0'])
        wait_until(lambda: is_gone(seen[-2]))
        served.send(signal.SIGTERM)
        assert served.ended() == 0
        assert len(seen) == 4 and served.log == ''


@pytest.mark.scenario(110)
def test_a_successor_that_fails_to_start_replaces_no_worker(tmp_path):
    fail = tmp_path / 'fail'
    with Served(tmp_path, fail=str(fail), run={'workers': 2}) as served:
        old = served.pids(2)
        fail.touch()
        served.send(signal.SIGHUP)
        serves = f'ended unexpectedly (exit code 1); worker 0 (pid {old["0"]}) serves'
        wait_until(lambda: serves in served.log)
        assert served.pids(2) == old
        assert served.log.count('ended unexpectedly') == 1
        fail.unlink()
        served.send(signal.SIGHUP)
        wait_until(lambda: not set(old.values()) & set(served.pids(2).values()))


@pytest.mark.scenario(110)
def test_a_worker_that_starts_to_drain_by_itself_is_replaced_while_it_drains(tmp_path):
    with Served(tmp_path) as served:
        old = served.pids()['0']
        busy = served.connect()
        assert busy.pid() == old
        busy.send('wait 1')
        os.kill(old, signal.SIGTERM)
        assert wait_until(lambda: served.connect().pid() != old)
        assert not is_gone(old)
        assert busy.receive() == f'{old} wait 1'
        wait_until(lambda: is_gone(old))
        assert served.log == ''


@LINUX
def test_no_client_waits_for_a_new_worker_while_others_serve(tmp_path):
    hang = tmp_path / 'hang'
    with Served(tmp_path, hang=str(hang)) as served:
        one = served.pids()['0']
        hang.touch()
        served.send(signal.SIGTTIN)
        wait_until(lambda: len(psutil.Process(served.parent.pid).children()) == 2)
        assert {served.connect().pid() for _ in range(20)} == {one}
        hang.unlink()
        two = set(served.pids(2).values())
        assert {served.connect().pid() for _ in range(40)} == two


@pytest.mark.scenario(110)
@LINUX
def test_a_worker_that_is_removed_answers_the_clients_in_its_queue(tmp_path):
    with Served(tmp_path) as served:
        one = served.pids()
        served.send(signal.SIGTTIN)
        two = served.pids(2)
        assert two['0'] == one['0']
        os.kill(two['1'], signal.SIGSTOP)
        waiting = [served.connect() for _ in range(40)]
        for conn in waiting:
            conn.send('x')
        served.send(signal.SIGTTOU)
        assert served.pids(1) == one
        os.kill(two['1'], signal.SIGCONT)
        counts = Counter(int(conn.receive().split()[0]) for conn in waiting)
        assert set(counts) == set(two.values()), counts
        wait_until(lambda: is_gone(two['1']))
        assert {served.connect().pid() for _ in range(20)} == set(one.values())
        served.send(signal.SIGTTOU)  # this has no effect on the last worker
        assert served.connect().pid() == one['0']
        assert served.log == ''


# -- shutdown


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_drains_and_open_requests_are_answered(tmp_path, signum):
    with Served(tmp_path, run={'workers': 2}) as served:
        pids = served.pids(2)
        conns = [served.connect() for _ in range(8)]
        for conn in conns:
            assert conn.pid() in pids.values()
            conn.send('wait 0.3')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        os.killpg(served.parent.pid, signum)  # as a terminal does on Ctrl-C
        for conn in conns:
            assert conn.receive().endswith(' wait 0.3')
            assert conn.receive() == ''
        assert served.ended() == 0
        assert all(map(is_gone, pids.values())) and served.log == ''
        with pytest.raises(ConnectionRefusedError):
            served.connect()


@pytest.mark.parametrize('signum', [signal.SIGUSR1, signal.SIGUSR2], ids=['stop', 'shutdown'])
def test_when_the_reactor_of_the_parent_is_stopped_the_workers_drain(tmp_path, signum):
    with Served(tmp_path) as served:
        conn = served.connect()
        conn.pid()
        conn.send('wait 0.5')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        served.send(signum)
        assert conn.receive().endswith(' wait 0.5')
        assert served.ended() == 0 and served.log == ''


@pytest.mark.parametrize('second', [signal.SIGUSR1, signal.SIGUSR2], ids=['stop', 'shutdown'])
@pytest.mark.parametrize('first', [signal.SIGTERM, signal.SIGUSR1], ids=['terminate', 'stop'])
def test_stopping_the_reactor_of_the_parent_while_the_workers_drain_cuts_off_no_client(tmp_path, first, second):
    with Served(tmp_path) as served:
        conn = served.connect()
        conn.pid()
        conn.send('wait 0.5')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        served.send(first)
        wait_until(lambda: served.look()['pids'] == {})
        served.send(second)
        assert conn.receive().endswith(' wait 0.5')
        assert served.ended() == 0 and served.log == ''


def test_clients_of_a_worker_that_is_still_starting_are_served_before_it_ends(tmp_path):
    hang = tmp_path / 'hang'
    hang.touch()
    with Served(tmp_path, hang=str(hang)) as served:
        conn = served.connect()
        conn.send('x')
        served.send(signal.SIGTERM)
        served.look()
        hang.unlink()
        assert conn.receive().endswith(' x')
        assert served.ended() == 0 and served.log == ''


def test_a_second_ctrl_c_ends_the_program_at_once(tmp_path):
    with Served(tmp_path) as served:
        pid = served.pids()['0']
        conn = served.connect()
        assert conn.pid() == pid
        conn.send('wait 4')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        served.send(signal.SIGINT)
        wait_until(lambda: served.look()['pids'] == {})
        served.send(signal.SIGINT)
        assert served.ended(3) == 130
        assert is_gone(pid)


def test_a_worker_that_does_not_end_is_killed_after_its_drain_timeout_and_the_status_is_1(tmp_path):
    with Served(tmp_path, run={'drain_timeout': 0.1}) as served:
        pid = served.connect().pid()
        os.kill(pid, signal.SIGSTOP)
        served.send(signal.SIGTERM)
        assert served.ended() == 1
        assert f'worker 0 (pid {pid}) has not ended after 2.1 s: killing it' in served.log


# -- what a program can do in a drain


@pytest.mark.parametrize(
    'how', ['SIGTERM', 'SIGINT', 'group', 'SIGHUP', 'SIGTTOU', 'stop', 'worker', 'orphan', 'times']
)
def test_drain_callbacks_run_once_in_every_kind_of_drain(tmp_path, how):
    run = {'workers': 2 if how == 'SIGTTOU' else 1, 'drain_timeout': 7, 'lame_duck': 0.3}
    with Served(tmp_path, goodbye=True, drain=[9, 0.2], run=run) as served:
        pids = served.pids(run['workers'])
        conn = served.connect()
        while (pid := conn.pid()) != pids['1' if how == 'SIGTTOU' else '0']:
            conn = served.connect()
        if how == 'group':
            os.killpg(served.parent.pid, signal.SIGTERM)  # as systemd does with KillMode=control-group
        elif how == 'orphan':
            served.parent.kill()
        elif how == 'worker':
            os.kill(pid, signal.SIGTERM)
        else:
            served.send({'stop': signal.SIGUSR1, 'times': signal.SIGALRM}.get(how) or signal.Signals[how])
        assert conn.receive() == f'{pid} goodbye {9 if how == "times" else 7:.1f}'
        assert conn.receive() == ''
        wait_until(lambda: is_gone(pid))
        assert served.log == ''


@pytest.mark.parametrize('deaf', ['reactor', 'python'])
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_handles_sigterm_itself_is_drained_and_warned(tmp_path, deaf, signum):
    with Served(tmp_path, deaf=deaf, goodbye=True) as served:
        conn = served.connect()
        pid = conn.pid()
        conn.send('wait 1.5')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        served.send(signum)
        assert conn.receive() == f'{pid} goodbye 5.0'
        assert conn.receive() == f'{pid} wait 1.5'
        assert conn.receive() == ''
        wait_until(lambda: is_gone(pid))
        (line, *others) = served.log.splitlines()
        assert 'SIGTERM' in line and 'r.add_drain_callback' in line
        assert len(others) == (signum == signal.SIGHUP)  # once in each worker
        if signum == signal.SIGTERM:
            assert served.ended() == 0


def test_the_times_of_a_drain_can_be_chosen_when_it_begins(tmp_path):
    with Served(tmp_path, drain=[0.5]) as served:
        conn = served.connect()
        conn.pid()
        conn.send('wait 4')
        time.sleep(0.1)  # the test cannot see when the worker has read the request
        began = time.monotonic()
        served.send(signal.SIGALRM)
        with pytest.raises(ConnectionResetError):
            conn.receive()
        assert 0.4 < time.monotonic() - began < 3
        assert served.ended() == 0


@pytest.mark.parametrize('times', [('5',), (-1,), (5, 6), (float('nan'),), (5, '1')])
def test_wrong_times_of_a_drain_are_refused_and_nothing_drains(team, times):
    with pytest.raises((TypeError, ValueError)):
        team.drain(*times)
    assert len(team.slots) == 2 and not team.leaving


def test_a_program_that_lets_sigterm_drain_is_not_warned(fake, sockets, caplog):
    given = WorkerSettings(sockets)
    worker = Worker(fake, given.settings, (5, 0))
    worker.begin(lambda r, socks: r.add_signal_handler(signal.SIGTERM, r.drain, 5) and None)
    worker.report()
    assert not caplog.records
    fake.add_signal_handler(signal.SIGTERM, fake.stop)
    worker.report()
    worker.report()
    assert len(caplog.records) == 1
    worker.control.on_close = None
    for sock in worker.listeners:
        sock.close()


# -- listening


@pytest.mark.parametrize(
    'address, parsed',
    [
        ('127.0.0.1:80', ('127.0.0.1', 80)),
        ('[::1]:0', ('::1', 0)),
        (':8000', (None, 8000)),
        (('a.example', 1), ('a.example', 1)),
        ((None, 1), (None, 1)),
        ('unix:/run/it', '/run/it'),
        ('unix:@it', '@it'),
        ('unix:/run/it?mode=0660', '/run/it'),
        ('unix:run/it?mode=600', 'run/it'),
    ],
)
def test_an_address_can_be_written_in_each_usual_form(address, parsed):
    assert parse(address) == parsed


@pytest.mark.parametrize('address', ['8000', '::1:80', 'host:', 'host:http', ':70000', ('a',), ('a', None), None, 8000])
def test_an_invalid_address_is_refused_and_shown(address):
    with pytest.raises((ValueError, TypeError), match=re.escape(repr(address)) if address != ':70000' else '70000'):
        parse(address)


@pytest.mark.parametrize(
    'address, reason',
    [
        ('unix:/run/it?mode=', "three octal digits, such as 0660, not ''"),
        ('unix:/run/it?mode=rw', "not 'rw'"),
        ('unix:/run/it?mode=0689', "not '0689'"),
        ('unix:/run/it?mode=-660', "not '-660'"),
        ('unix:/run/it?mode=66', "not '66'"),
        ('unix:/run/it?mode=4755', "not '4755'"),
        ('unix:/run/it?mode=\u0666\u0666\u0666', 'three octal digits'),
        ('unix:/run/it?mode=0660&mode=0600', "not '0660&mode=0600'"),
        ('unix:/run/it?mod=0660', "no option 'mod'; the only one is mode"),
        ('unix:/run/it?', "no option ''"),
        ('unix:@it?mode=0660', 'no file'),
    ],
)
def test_an_invalid_option_of_a_unix_socket_is_refused_and_leaves_no_file(address, reason, tmp_path):
    address = address.replace('/run', str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        ListenAddress(address, 10)
    assert repr(address) in str(caught.value) and not list(tmp_path.iterdir())


def test_a_port_that_another_program_uses_is_refused():
    first = ListenAddress((HERE, 0), 10)
    sock = first.socket_for_worker()
    with pytest.raises(OSError, match='in use'):
        ListenAddress(sock.getsockname(), 10)
    second = first.socket_for_worker()
    assert second.getsockname() == sock.getsockname()
    first.close(sock)
    first.close(second)
    first.remove()


def test_if_the_kernel_does_not_distribute_clients_all_workers_share_one_socket(monkeypatch):
    monkeypatch.setattr(addresses, 'DIVIDED', False)
    address = ListenAddress((HERE, 0), 10)
    sock = address.socket_for_worker(listening=False)
    assert address.socket_for_worker() is sock
    with socket.create_connection(sock.getsockname()):
        address.close(sock)
        sock.accept()[0].close()
    address.remove()
    assert sock.fileno() < 0


def test_an_already_listening_socket_is_shared_by_all_workers(sockets):
    sock = sockets.track(socket.create_server((HERE, 0)))
    address = ListenAddress(sock, 10)
    assert address.socket_for_worker() is address.socket_for_worker() is sock
    address.close(sock)
    assert sock.fileno() >= 0
    address.remove()
    assert sock.fileno() < 0


def test_a_datagram_socket_is_refused(sockets):
    sock = sockets.track(socket.socket(type=socket.SOCK_DGRAM))
    with pytest.raises(ValueError, match='bind_udp'):
        ListenAddress(sock, 10)


def test_a_file_and_a_closed_socket_are_refused(sockets):
    with open(os.devnull) as file, pytest.raises(TypeError, match='listen= takes a stream socket'):
        ListenAddress(file, 10)
    closed = socket.create_server((HERE, 0))
    closed.close()
    with pytest.raises(OSError, match='listen= takes an open socket'):
        ListenAddress(closed, 10)


@pytest.mark.parametrize(
    'arguments',
    [
        {'main': 3},
        {'on_start': 3},
        {'workers': 0},
        {'workers': True},
        {'workers': 1.0},
        {'drain_timeout': -1},
        {'lame_duck': 31},
        {'listen': [3]},
        {'listen': 3},
        {'hang_timeout': 1},
        {'hang_timeout': 0},
        {'hang_timeout': '5'},
        {'backlog': -1},
        {'listen': '127.0.0.1:0'},
        {'start_timeout': -1},
        {'start_timeout': 'soon'},
        {'worker': 2},
        {'slow_callback': -1},
    ],
)
def test_bad_arguments_raise_before_anything_is_started(arguments, monkeypatch):
    monkeypatch.delattr(serve.Workers, 'begin')  # starting workers would run these tests again
    # The main module of a pytest-xdist worker has no file, so `run` would raise before it checks `listen`.
    monkeypatch.setattr(sys.modules['__main__'], '__file__', __file__, raising=False)
    with pytest.raises((TypeError, ValueError)):
        serve.run(**{'main': print, **arguments})


@pytest.mark.parametrize(
    'arguments', [{'workers': 1}, {'drain_timeout': 0, 'lame_duck': 0}, {'hang_timeout': 2}, {'hang_timeout': None}]
)
def test_the_smallest_values_are_accepted(arguments, monkeypatch):
    monkeypatch.setattr(serve.Workers, 'begin', lambda team, count, on_start: team.r.stop())
    monkeypatch.setattr(sys.modules['__main__'], '__file__', __file__, raising=False)
    assert serve.run(print, **arguments) == 0


def test_on_platforms_without_inheritable_sockets_the_error_says_what_to_do(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'name', 'nt')
        with pytest.raises(ReactorError, match='use one process'):
            serve.run(print)


def test_by_default_there_is_a_worker_for_each_processor():
    assert processors() == len(psutil.Process().cpu_affinity() if hasattr(psutil.Process, 'cpu_affinity') else [0])
