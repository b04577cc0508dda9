"""Several processes on one simulated network: they are killed and started again, and each has its own clock."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from reactor.testing import Simulation, SimulationFailed

PLACE = '10.0.0.1', 99
SEEDS = range(30)


def run(program: Any, seed: int = 0, **options: Any) -> Simulation:
    return Simulation(seed, **{'faults': False, **options}).run_program(program)


def answers(world: Any) -> None:
    """A server that answers each byte."""
    world.r.listen_tcp(*PLACE, lambda conn, data: conn.write(data))


class Client:
    """A client that connects until it has got an answer to each of ten requests."""

    def __init__(self, world: Any) -> None:
        self.r, self.answered, self.connects = world.r, 0, 0
        self.goal = world.expect('ten answers')
        self.connect()

    def connect(self) -> None:
        self.connects += 1
        self.r.connect_tcp(*PLACE, self.on_data, on_connect=self.ask, on_close=self.on_close, timeout=5, read_timeout=5)

    def ask(self, conn: Any) -> None:
        conn.write(b'x')

    def on_data(self, conn: Any, data: bytes) -> None:
        self.answered += len(data)
        if self.answered < 10:
            self.r.call_later(1, lambda: conn.closed or self.ask(conn))
            return
        self.goal.met()
        conn.close()

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        if self.answered < 10:
            self.r.call_later(0.5, self.connect)


@pytest.mark.parametrize('faults', [False, True])
def test_a_client_reconnects_to_a_server_that_is_killed_and_started_again(faults: bool) -> None:
    starts = []

    def program(world: Any) -> None:
        server = world.process(answers)
        client = Client(world)
        world.r.call_later(3.3, server.kill)
        world.r.call_later(5, lambda: server.running or server.start())
        starts.append((server, client))

    for seed in SEEDS:
        run(program, seed, faults=faults)
    assert all(client.answered == 10 and client.connects > 1 for server, client in starts if server.starts > 1)
    assert sum(server.starts > 1 for server, _ in starts) > len(SEEDS) // 2


def test_a_fault_kills_a_process_at_any_call_and_starts_it_again() -> None:
    starts = []

    def program(world: Any) -> None:
        starts.append(world.process(answers))
        Client(world)

    for seed in SEEDS:
        run(program, seed, faults=('process.killed',), calm=60)
    assert sum(server.starts > 1 for server in starts) > len(SEEDS) // 4


@pytest.mark.slow
def test_without_kills_no_fault_kills_a_process() -> None:
    starts = []

    def program(world: Any) -> None:
        starts.append(world.process(answers, kills=False))
        Client(world)

    for seed in SEEDS:
        run(program, seed, faults=('process.killed',), calm=60)
    assert {server.starts for server in starts} == {1}


@pytest.mark.parametrize('reads', [True, False])
def test_a_killed_process_ends_its_connections_as_the_kernel_does(reads: bool) -> None:
    ends: list[BaseException | None] = []

    def silent(world: Any) -> None:
        def on_connect(conn: Any) -> None:
            if not reads:
                conn.pause_reading()

        world.r.listen_tcp(*PLACE, lambda conn, data: None, on_connect=on_connect)

    def program(world: Any) -> None:
        server = world.process(silent)
        world.r.connect_tcp(
            *PLACE, on_connect=lambda conn: conn.write(b'x'), on_close=lambda conn, exc: ends.append(exc)
        )
        world.r.call_later(1, server.kill)

    run(program, selector='epoll')
    assert [type(exc) for exc in ends] == [type(None) if reads else ConnectionResetError]


def test_what_a_process_keeps_in_memory_is_lost_and_no_callback_is_called() -> None:
    closed, counts = [], []

    def server(world: Any) -> None:
        seen = [0]

        def on_data(conn: Any, data: bytes) -> None:
            seen[0] += 1
            counts.append(seen[0])
            conn.write(data)

        world.r.listen_tcp(*PLACE, on_data, on_close=lambda conn, exc: closed.append(conn))

    def program(world: Any) -> None:
        process = world.process(server)
        Client(world)
        world.r.call_later(4.4, process.kill)
        world.r.call_later(4.6, process.start)

    run(program, selector='epoll')
    assert counts.count(1) == 2  # the second start counts from the beginning
    assert len(closed) <= 1  # that of the connection that was not killed


def test_each_process_has_a_clock_of_its_own() -> None:
    now, after = {}, {}

    def other(world: Any) -> None:
        now['other'] = world.r.now
        world.r.call_later(3600, lambda: after.update(other=world.r.now - now['other']))

    def program(world: Any) -> None:
        world.process(other)
        now['main'] = world.r.now
        world.r.call_later(3610, lambda: after.update(main=world.r.now - now['main']))

    run(program, selector='epoll', grain=0)
    assert abs(now['main'] - now['other']) > 1
    assert after['other'] == pytest.approx(3600, abs=0.1)
    assert after['main'] == pytest.approx(3610, abs=0.1)


def test_a_program_that_compares_the_clocks_of_two_processes_is_found() -> None:
    def stamped(world: Any) -> None:
        world.r.listen_tcp(*PLACE, lambda conn, data: conn.write(repr(world.r.now).encode()))

    def program(world: Any) -> None:
        world.process(stamped)

        def on_data(conn: Any, data: bytes) -> None:
            conn.close()
            if abs(float(data) - world.r.now) > 60:
                world.fail('the answer is a minute old')

        world.r.connect_tcp(*PLACE, on_data, on_connect=lambda conn: conn.write(b'x'))

    with pytest.raises(SimulationFailed, match='a minute old'):
        run(program)


def test_the_same_seed_makes_the_same_run() -> None:
    def program(world: Any) -> None:
        world.process(answers)
        Client(world)

    for seed in range(8):
        first, second = (run(program, seed, faults=True).trace_hash() for _ in range(2))
        assert first == second


class Worker:
    """A server that does each numbered piece of work and answers. `done` is its disk, which survives a kill."""

    def __init__(self, world: Any, done: list[int], once: bool) -> None:
        self.done, self.once = done, once
        world.r.listen_tcp(*PLACE, self.on_data, on_connect=self.on_connect)

    def on_connect(self, conn: Any) -> None:
        conn.data = b''

    def on_data(self, conn: Any, data: bytes) -> None:
        *lines, conn.data = (conn.data + data).split(b'\n')
        for line in lines:
            if not (self.once and int(line) in self.done):
                self.done.append(int(line))
            conn.write(line + b'\n')


class Pipeline:
    """A client that sends twenty requests at once, and after a reconnect those that are not answered."""

    def __init__(self, world: Any) -> None:
        self.r, self.open, self.buffer = world.r, list(range(20)), b''
        self.goal = world.expect('all answers')
        self.connect()

    def connect(self) -> None:
        self.buffer = b''
        self.r.connect_tcp(
            *PLACE, self.on_data, on_connect=self.ask, on_close=self.on_close, timeout=5, read_timeout=30
        )

    def ask(self, conn: Any) -> None:
        conn.write(b''.join(b'%d\n' % number for number in self.open))

    def on_data(self, conn: Any, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b'\n')
        self.open = [number for number in self.open if b'%d' % number not in lines]
        if not self.open:
            self.goal.met()
            conn.close()

    def on_close(self, conn: Any, exc: BaseException | None) -> None:
        if self.open:
            self.r.call_later(0.5, self.connect)


def work(world: Any, once: bool) -> None:
    done: list[int] = []
    world.process(lambda inner: Worker(inner, done, once), name='server')
    Pipeline(world)
    world.always(lambda: len(done) == len(set(done)), 'no work is done twice')


@pytest.mark.slow
def test_work_that_is_done_twice_after_a_kill_is_found_within_a_hundred_seeds() -> None:
    found = 0
    for seed in range(100):
        try:
            run(lambda world: work(world, once=False), seed, faults=True)
        except SimulationFailed as failed:
            assert 'no work is done twice' in str(failed)
            found += 1
    assert found > 2
    for seed in range(100):
        run(lambda world: work(world, once=True), seed, faults=True)


def test_a_process_can_kill_itself_in_a_callback() -> None:
    after = []

    def other(world: Any) -> None:
        def end() -> None:
            processes[0].kill()
            after.append('it goes on')

        world.r.call_later(1, end)

    processes: list[Any] = []
    run(lambda world: processes.append(world.process(other)) or world.r.call_later(5, lambda: None))
    assert not processes[0].running and after == []


def test_a_signal_reaches_the_handler_of_its_process() -> None:
    caught = []

    def other(world: Any) -> None:
        def handler() -> None:
            caught.append(world.r.now)
            world.r.remove_signal_handler(signal.SIGTERM)

        world.r.add_signal_handler(signal.SIGTERM, handler)

    def program(world: Any) -> None:
        process = world.process(other)
        world.r.call_later(1, process.raise_signal, signal.SIGTERM)
        world.r.call_later(2, lambda: process.running and world.fail('it still runs'))

    run(program)
    assert len(caught) == 1


def test_stop_ends_a_process_and_closes_what_is_open() -> None:
    ends = []

    def other(world: Any) -> None:
        world.r.listen_tcp(*PLACE, on_close=lambda conn, exc: ends.append(exc))
        world.r.call_later(1, world.r.stop)

    def program(world: Any) -> None:
        process = world.process(other)
        world.r.connect_tcp(*PLACE)
        world.r.call_later(2, lambda: process.running and world.fail('it still runs'))

    run(program)
    assert ends == [None]


def test_the_socket_file_of_a_killed_process_stays_and_its_next_start_replaces_it() -> None:
    def other(world: Any) -> None:
        world.r.listen_unix('/run/other.sock', lambda conn, data: conn.write(data))

    def program(world: Any) -> None:
        process, got = world.process(other), world.expect('an answer')

        def on_data(conn: Any, data: bytes) -> None:
            got.met()
            conn.close()

        world.r.call_later(1, process.kill)
        world.r.call_later(2, process.start)
        world.r.call_later(
            3, lambda: world.r.connect_unix('/run/other.sock', on_data, on_connect=lambda conn: conn.write(b'x'))
        )

    run(program, selector='epoll')


def test_a_running_process_cannot_be_started() -> None:
    def program(world: Any) -> None:
        process = world.process(answers)
        with pytest.raises(RuntimeError, match='answers is running; call kill'):
            process.start()

    run(program)


def test_an_event_that_a_process_expects_must_happen_although_the_main_program_has_ended() -> None:
    def late(world: Any) -> None:
        world.r.call_later(100, world.expect('the timer').met)

    def never(world: Any) -> None:
        world.expect('a miracle')
        world.r.listen_tcp(*PLACE)

    run(lambda world: world.process(late))
    with pytest.raises(SimulationFailed, match=r'\[never\] expects: a miracle'):
        run(lambda world: world.process(never))


def test_a_violation_names_its_process() -> None:
    def wrong(world: Any) -> None:
        world.r.call_later(1, lambda: 1 / 0)

    with pytest.raises(SimulationFailed, match=r'in the process wrong: a scheduled call raised ZeroDivisionError'):
        run(lambda world: world.process(wrong) and world.r.call_later(3, lambda: None))


def test_a_report_names_the_process_in_each_line_and_says_which_is_not_running() -> None:
    def program(world: Any) -> None:
        process = world.process(answers, name='server')
        world.r.connect_tcp(*PLACE, on_connect=lambda conn: conn.write(b'x'))
        world.r.call_later(1, process.kill)
        world.r.call_later(2, lambda: world.r.listen_tcp('10.0.0.1', 100))

    with pytest.raises(SimulationFailed) as failed:
        run(program)
    report = str(failed.value)
    assert '[server] it is not running' in report
    assert '[server] server 1: recv 1 byte' in report
    assert 'client 1: recv 1 byte' in report


@pytest.mark.parametrize('profile', ['default', 'hostile'])
def test_a_partition_holds_bytes_back_until_it_ends(profile: str) -> None:
    times = []

    def program(world: Any) -> None:
        server, near = world.process(answers), world.process(lambda inner: ask(inner, 'near'), name='near')
        parts = []
        world.r.call_later(1, lambda: parts.append(world.partition(server, near)))
        world.r.call_later(61, lambda: parts[0].end())
        world.r.call_later(2, lambda: ask(world, 'main', connected))
        connected = world.r.connect_tcp(*PLACE, read_timeout=300)

    def ask(world: Any, who: str, conn: Any = None) -> None:
        answer = world.expect(f'the answer to {who}')

        def on_data(conn: Any, data: bytes) -> None:
            times.append((who, round(world.kernel.time / 1e9 - 1000)))
            answer.met()
            conn.close()

        if conn is None:
            world.r.call_later(
                2, lambda: world.r.connect_tcp(*PLACE, on_data, on_connect=lambda conn: conn.write(b'x'))
            )
        else:
            conn.on_data = on_data
            conn.write(b'x')

    for seed in range(5):
        times.clear()
        run(program, seed, selector='epoll', grain=0, profile=profile)
        assert [who for who, _ in times] == ['near', 'main']
        assert times[0][1] < 10 and 60 < times[1][1] < 70


def test_connects_get_no_answer_in_a_partition_and_datagrams_are_lost() -> None:
    ends, datagrams = [], []

    def other(world: Any) -> None:
        answers(world)
        world.r.bind_udp('10.0.0.1', 53, lambda sock, data, address: datagrams.append(data))

    def program(world: Any) -> None:
        part = world.partition(world.process(other))
        world.r.call_later(1, lambda: world.r.connect_tcp(*PLACE, timeout=5, on_close=lambda c, exc: ends.append(exc)))
        sock = world.r.connect_udp('10.0.0.1', 53)
        sock.send(b'lost')
        world.r.call_later(10, part.end)
        world.r.call_later(11, lambda: sock.send(b'found') and sock.close())
        world.r.call_later(20, lambda: None)

    run(program, selector='epoll')
    assert [type(exc).__name__ for exc in ends] == ['ConnectTimeout'] and datagrams == [b'found']


def test_what_close_ends_after_stop_may_be_expected_in_a_process_too() -> None:
    def other(world: Any) -> None:
        end = world.expect('the end of the connection')
        world.r.listen_tcp(*PLACE, on_close=lambda conn, exc: end.met())
        world.r.call_later(1, world.r.stop)

    def program(world: Any) -> None:
        world.process(other)
        world.r.connect_tcp(*PLACE)

    run(program)
