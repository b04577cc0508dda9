"""The flight recorder: what it records, when it writes a file, and that the file is a valid trace."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from reactor import Reactor, ReactorError, ThreadCall
from reactor.observe import FlightRecorder, recorder, serve_control
from reactor.observe.asking import ControlClient
from reactor.observe.trace_events import TURNS, Recording, as_json, unpacked
from tests.helpers.support import FakeKernel, run_until, turns
from tests.helpers.trace_format import check

STALL = 0.08  # seconds


@pytest.fixture
def soon(monkeypatch):
    """Files are written soon after their cause, not after a second."""
    monkeypatch.setattr(recorder, 'AFTERMATH', 0.05)


@pytest.fixture
def record(r):
    """`record(**options)` opens a recorder on `r`, which is closed after the test."""
    opened = []

    def record(*args, **options):
        opened.append(FlightRecorder(r, *args, **options))
        return opened[-1]

    yield record
    for flight in opened:
        flight.close()
    run_until(r, lambda: not [handle for handle in r.handles() if isinstance(handle, ThreadCall)])


class Server:
    """A server that echoes, and stalls when it reads 'stall'; 'last' makes it stall and close."""

    def __init__(self, r, clients=10):
        self.r = r
        self.listener = r.listen_tcp('127.0.0.1', 0, self.on_data)
        self.socks = [socket.create_connection(self.listener.address) for _ in range(clients)]
        self.waiting = self.socks[1:]  # they send something during a stall
        self.seen = []
        run_until(r, lambda: r.stats().incoming == clients)

    def on_data(self, conn, data):
        self.seen.append(data)
        if data in (b'stall', b'last'):
            for sock in self.waiting:
                sock.send(b'waits')
            time.sleep(STALL)
        if data == b'last':
            conn.close()
        else:
            conn.write(data)

    @property
    def line(self):
        code = self.on_data.__func__.__code__
        return f'{__name__}.{code.co_qualname}:{code.co_firstlineno}'

    def stall(self, how=b'stall'):
        self.socks[0].send(how)
        run_until(self.r, lambda: how in self.seen and self.seen.count(b'waits') == len(self.waiting))

    def close(self):
        for sock in self.socks:
            sock.close()
        run_until(self.r, lambda: not self.r.stats().incoming)
        self.listener.close()


@pytest.fixture
def server(r):
    server = Server(r)
    yield server
    server.close()


def events(path):
    """Return the events of a trace, after checking the format and what this recorder promises in addition."""
    found = check(path.read_text())
    times = [event['ts'] for event in found if event['ph'] != 'M']
    assert times == sorted(times), 'a viewer can read the file from its beginning to its end'
    slices = [event for event in found if event['ph'] == 'X']
    named = {event['tid'] for event in found if event['name'] == 'thread_name'}
    assert {event['tid'] for event in slices} <= named
    for track in named:
        ends = [event['ts'] + event['dur'] for event in slices if event['tid'] == track]
        begins = [event['ts'] for event in slices if event['tid'] == track]
        assert all(ended <= began + 0.001 for ended, began in zip(ends, begins[1:], strict=False)), 'nothing is nested'
    return found


def files(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith('.'))


def test_a_stall_is_written_with_its_line_its_connection_and_what_waited(r, record, server, soon, tmp_path):
    record(folder=tmp_path, slow=STALL / 2)
    server.stall()
    run_until(r, lambda: files(tmp_path))
    (path,) = files(tmp_path)
    (stall, of_connection) = [event for event in events(path) if event['name'] == server.line]
    assert STALL * 1e6 <= stall['dur'] < 10 * STALL * 1e6
    host, port = server.socks[0].getsockname()
    at_most = stall['args'].pop('waited_at_most_ms')
    assert stall['dur'] / 1e3 <= at_most < 10 * STALL * 1e3
    assert stall['args'] == {
        'phase': 'dispatch',
        'connection': f'Stream {host}:{port}',
        'events_that_waited': len(server.socks) - 1,
        'timers_that_waited': 0,
        'mean_timer_lag_ms': 0.0,
    }
    assert of_connection['tid'] != stall['tid']
    assert server.line in json.loads(path.read_text())['otherData']['reason']


def stall_in(flight, path):
    """Return the arguments of the one callback that took as long as the stall."""
    flight.save(path)
    tracks = {event['tid']: event['args']['name'] for event in events(path) if event['name'] == 'thread_name'}
    (stall,) = [
        event for event in events(path)
        if event['ph'] == 'X' and tracks[event['tid']] == 'callbacks' and event['dur'] >= STALL * 1e6
    ]  # fmt: skip
    return stall['args']


def test_events_of_the_same_turn_that_come_after_the_slow_callback_have_waited_too(r, record, server, tmp_path):
    flight = record()
    server.waiting = []
    for sock in server.socks:  # all are reported in one turn
        sock.send(b'stall' if sock is server.socks[0] else b'at once')
    run_until(r, lambda: len(server.seen) == len(server.socks))
    after = len(server.seen) - 1 - server.seen.index(b'stall')
    found = stall_in(flight, tmp_path / 'trace')
    assert found['events_that_waited'] == after
    assert (found['waited_at_most_ms'] >= STALL * 1e3) is (after > 0)


def test_an_event_that_arrives_after_the_slow_callback_has_not_waited(r, record, server, tmp_path):
    flight = record()
    server.waiting = []
    server.stall()
    time.sleep(STALL / 2)
    server.socks[1].send(b'later')
    run_until(r, lambda: b'later' in server.seen)
    found = stall_in(flight, tmp_path / 'trace')
    assert (found['events_that_waited'], found['waited_at_most_ms']) == (0, 0.0)


def test_more_events_than_epoll_reports_at_once_have_all_waited():
    turns = (9.0, 9.001, 0), (10.0, 10.081, 4), (10.082, 10.09, 1023), (10.091, 10.1, 477), (10.101, 10.102, 2)
    stall = 'dispatch', 10.0, 10.08, 'app.on_data:1', None, 3
    recording = Recording(entries_of(turns), [stall], since=0.0, clock_offset=0.0, pid=1, reason='')
    (found,) = [event['args'] for event in check(as_json(recording)) if event['name'] == 'app.on_data:1']
    assert found['events_that_waited'] == 3 + 1023 + 477
    assert found['waited_at_most_ms'] == 100


def entries_of(turns):
    """Return the entries of these turns, each of which spent its time dispatching this number of events."""
    entries = []
    events = dispatch = 0
    for number, (began, ended, count) in enumerate(turns):
        events += count
        dispatch += ended - began
        entries.append((began, ended, number, events, dispatch, 0.0, 0.0, 0.0, 0, 0.0, 0, 0, 0, 0))
    return entries


@pytest.mark.parametrize('due', ['in the turn of the stall', 'during the stall'])
def test_timers_that_waited_are_counted_with_their_lag(due, r, record, server, tmp_path):
    flight = record()
    server.waiting = []
    fired = []
    server.socks[0].send(b'stall')
    for _ in range(3):
        r.call_later(0 if due == 'in the turn of the stall' else STALL / 2, fired.append, 1)
    run_until(r, lambda: len(fired) == 3)
    found = stall_in(flight, tmp_path / 'trace')
    assert found['timers_that_waited'] == 3 and found['events_that_waited'] == 0
    lag = STALL if due == 'in the turn of the stall' else STALL / 2
    assert lag * 1e3 * 0.9 <= found['mean_timer_lag_ms'] < 10 * STALL * 1e3
    assert found['waited_at_most_ms'] >= STALL * 1e3


def test_timers_that_wait_for_a_slow_timer_are_counted(r, record, tmp_path):
    flight = record()
    for fn, *args in ((int,), (time.sleep, STALL), (int,), (int,)):
        r.call_later(0, fn, *args)
    run_until(r, lambda: not len(r.timers))
    found = stall_in(flight, tmp_path / 'trace')
    assert (found['phase'], found['timers_that_waited'], found['events_that_waited']) == ('timers', 2, 0)
    assert min(found['mean_timer_lag_ms'], found['waited_at_most_ms']) >= STALL * 1e3


def test_a_connection_that_ends_in_its_slow_callback_is_named_too(r, record, server, soon, tmp_path):
    record(folder=tmp_path, slow=STALL / 2)
    host, port = server.socks[0].getsockname()
    server.stall(b'last')
    run_until(r, lambda: files(tmp_path))
    stalls = [event for event in events(files(tmp_path)[0]) if event['name'] == server.line]
    assert stalls[0]['args']['connection'] == f'Stream {host}:{port}'


def test_the_turns_and_phases_of_a_stall_are_shown(r, record, server, tmp_path):
    flight = record()
    r.call_later(0, lambda: None)
    server.stall()
    flight.save(tmp_path / 'trace')
    found = events(tmp_path / 'trace')
    tracks = {event['tid']: event['args']['name'] for event in found if event['name'] == 'thread_name'}
    assert {'turns', 'dispatch', 'timers', 'soon', 'completions', 'callbacks'} <= set(tracks.values())
    for track in 'turns', 'dispatch':
        longest = max(e['dur'] for e in found if e['ph'] == 'X' and tracks[e['tid']] == track)
        assert longest >= STALL * 1e6
    assert {event['name'] for event in found if event['ph'] == 'C'} == {'connections', 'timer lag in ms', 'bytes'}
    received = sum(event['args']['received'] for event in found if event['name'] == 'bytes')
    assert received == r.stats().bytes_in


def test_turns_that_begin_within_a_millisecond_share_an_entry(tmp_path):
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        flight = FlightRecorder(r, seconds=2)
        for _ in range(3000):
            kernel.time += 0.0001
            r.call_soon(int)
            r.run_once()
        flight.save(tmp_path / 'trace')
        turns = [event for event in events(tmp_path / 'trace') if event['tid'] == TURNS and event['ph'] == 'X']
        assert 250 <= len(turns) <= 350
        assert sum(int(event['name'].partition(' ')[0]) for event in turns) == 3000


def test_memory_is_bounded_and_what_is_too_old_is_left_out(tmp_path):
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        flight = FlightRecorder(r, seconds=2, callbacks=0)
        for _ in range(30_000):
            kernel.time += 0.001
            r.call_soon(int)
            r.run_once()
        assert len(flight.recording('').entries) <= 2002
        assert len(flight.recording('').callbacks) <= recorder.MOST_CALLBACKS
        flight.save(tmp_path / 'trace')
        times = [event['ts'] for event in events(tmp_path / 'trace') if event['ph'] == 'X']
        assert min(times) >= (kernel.time - 2.01) * 1e6
        assert max(times) >= (kernel.time - 0.01) * 1e6


def test_a_signal_causes_a_file(r, record, soon, tmp_path):
    record(folder=tmp_path, signum=signal.SIGUSR2)
    r.call_soon(signal.raise_signal, signal.SIGUSR2)
    run_until(r, lambda: files(tmp_path))
    assert json.loads(files(tmp_path)[0].read_text())['otherData']['reason'] == f'signal {signal.SIGUSR2:d}'


def fail(*args):
    raise RuntimeError('a bug')


@pytest.mark.parametrize('where', ['main', 'callback'])
def test_an_exception_that_leaves_run_causes_a_file(where, tmp_path):
    with Reactor(catch_errors=False) as r:
        FlightRecorder(r, folder=tmp_path)
        if where == 'callback':
            r.call_soon(fail)
        with pytest.raises(RuntimeError, match='a bug'):
            r.run(fail if where == 'main' else None)
        (path,) = files(tmp_path)
        events(path)
        assert 'a bug' in json.loads(path.read_text())['otherData']['reason']


def test_a_file_that_is_due_is_written_when_the_reactor_is_closed(tmp_path):
    with Reactor() as r:
        FlightRecorder(r, folder=tmp_path, slow=0.01)
        r.call_soon(time.sleep, 0.02)
        assert r.run() is True, 'a file that is due does not keep run() running'
        assert files(tmp_path) == []
    assert len(files(tmp_path)) == 1


def test_many_stalls_cause_one_file_in_the_given_seconds(r, record, server, soon, tmp_path):
    record(60, folder=tmp_path, slow=0.01)
    for _ in range(3):
        server.stall()
        server.seen.clear()
    run_until(r, lambda: files(tmp_path))
    r.run_once(0.1)
    assert len(files(tmp_path)) == 1


def test_the_oldest_files_are_removed(r, record, soon, tmp_path):
    for second in range(5):
        (tmp_path / f'trace-20200101T00000{second}-1-0001.json').touch()
    (tmp_path / 'notes').touch()
    record(folder=tmp_path, most_files=3, signum=signal.SIGUSR2)
    r.call_soon(signal.raise_signal, signal.SIGUSR2)
    run_until(r, lambda: len(files(tmp_path)) == 4)
    names = [path.name for path in files(tmp_path)]
    assert names[0] == 'notes'
    assert names[1:3] == ['trace-20200101T000003-1-0001.json', 'trace-20200101T000004-1-0001.json']
    assert names[3] > 'trace-2026'


def test_a_file_that_cannot_be_written_is_logged_and_harms_nothing(r, record, soon, tmp_path, caplog):
    folder = tmp_path / 'gone'
    record(folder=folder, signum=signal.SIGUSR2)
    folder.rmdir()
    r.call_soon(signal.raise_signal, signal.SIGUSR2)
    run_until(r, lambda: caplog.records)
    assert str(folder) in caplog.records[0].getMessage() and 'No such file' in caplog.records[0].getMessage()


def test_nothing_is_left_of_a_file_that_could_not_be_written(r, record, tmp_path, monkeypatch):
    flight = record()
    monkeypatch.setattr('pathlib.Path.replace', fail)
    with pytest.raises(RuntimeError):
        flight.save(tmp_path / 'trace')
    assert files(tmp_path) == []


def test_without_callbacks_only_turns_are_recorded(r, record, server, tmp_path):
    flight = record(callbacks=None)
    assert not r.phase_timer.watching
    server.stall()
    flight.save(tmp_path / 'trace')
    found = events(tmp_path / 'trace')
    assert not [event for event in found if event['name'] == server.line]
    assert max(event['dur'] for event in found if event['ph'] == 'X') >= STALL * 1e6


def test_a_closed_recorder_leaves_the_loop_as_it_was(r, record):
    before = dict(vars(r))
    flight = record(signum=signal.SIGUSR2)
    assert vars(r).keys() != before.keys()
    flight.close()
    flight.close()
    assert vars(r).keys() == before.keys()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    record().close()


def test_a_recorder_and_slow_callback_both_see_a_slow_callback(tmp_path, caplog):
    with Reactor(slow_callback=0.01) as r:
        flight = FlightRecorder(r, callbacks=0.01)
        r.call_soon(time.sleep, 0.02)
        r.run()
        assert [one[3] for one in flight.recording('').callbacks] == ['time.sleep']
        flight.close()
        r.call_soon(time.sleep, 0.02)
        r.run()
    assert r.counters.slow_callbacks == 2


def test_a_second_recorder_is_refused(record):
    record()
    with pytest.raises(ReactorError, match='already has a flight recorder'):
        record()


@pytest.mark.parametrize(
    'wrong, error',
    [
        ({'seconds': 0}, ValueError),
        ({'callbacks': -1}, ValueError),
        ({'slow': '1'}, TypeError),
        ({'most_files': 0}, ValueError),
        ({'signum': 9999}, ValueError),
    ],
    ids=repr,
)
def test_a_wrong_argument_is_refused_and_nothing_is_recorded(r, wrong, error):
    before = set(vars(r))
    with pytest.raises(error):
        FlightRecorder(r, **wrong)
    assert set(vars(r)) == before


def test_the_control_socket_returns_the_trace(tmp_path):
    program = f"""
import reactor, time
from reactor import observe

def main(r):
    recorder = observe.FlightRecorder(r)
    r.call_soon(time.sleep, {STALL})
    observe.serve_control(r, 'app.sock', recorder=recorder)
    r.call_later(60, r.stop)
    print('ready', flush=True)

reactor.run(main)
"""
    child = subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == 'ready\n'
        command = [sys.executable, '-m', 'reactor.observe', 'app.sock', 'trace', 'slow.json']
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert 'slow.json' in done.stdout and 'perfetto' in done.stdout
        assert [event for event in events(tmp_path / 'slow.json') if event['name'] == 'time.sleep']
        with ControlClient(str(tmp_path / 'app.sock')) as client:
            assert json.loads(unpacked(client.ask('trace')['trace']))['otherData']['reason'] == 'asked for'
    finally:
        child.kill()
        child.communicate()


def test_without_a_recorder_the_command_says_how_to_have_one(r, tmp_path):
    path = str(tmp_path / 'app.sock')
    control = serve_control(r, path)
    sock = socket.socket(socket.AF_UNIX)
    with sock:
        sock.connect(path)
        sock.send(b'trace\n')
        sock.setblocking(False)
        answer = []

        def answered():
            try:
                answer.append(sock.recv(4096))
            except BlockingIOError:
                return False
            return True

        run_until(r, answered)
    control.close()
    turns(r, 2)
    found = json.loads(answer[0])
    assert found['ok'] is False and 'recorder=' in found['error']


@pytest.mark.parametrize('words', [['trace'], ['trace', 'a', 'b'], ['trace', 'a', '--watch', '1']])
def test_a_trace_needs_exactly_one_file(words, tmp_path):
    command = [sys.executable, '-m', 'reactor.observe', 'app.sock', *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and 'trace FILE' in done.stderr


def test_the_log_names_the_reason_of_the_file_that_was_written(tmp_path, caplog):
    with Reactor(catch_errors=False) as r:
        FlightRecorder(r, folder=tmp_path, slow=0.01)
        r.call_soon(time.sleep, 0.02)
        r.run_once(0)  # a file is due because of this
        r.call_soon(fail)
        with pytest.raises(RuntimeError):
            r.run_once(0)
        (path,) = files(tmp_path)
        (line,) = [record.getMessage() for record in caplog.records if 'flight recorder' in record.getMessage()]
        assert 'an exception left run(): RuntimeError' in line and str(path) in line


def test_a_closed_recorder_keeps_nothing_that_it_has_recorded(record, r):
    flight = record(callbacks=0)
    r.call_soon(int)
    r.run_once(0)
    assert flight.recording('').entries and flight.recording('').callbacks
    flight.close()
    assert not flight.recording('').entries and not flight.recording('').callbacks
