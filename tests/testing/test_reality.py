"""A simulated program that uses the real network, the real clock or real threads is refused."""

from __future__ import annotations

import concurrent.futures
import http.client
import logging
import socket
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.testing import Simulation, SimulationFailed
from reactor.testing.reality import ORIGINALS, Refused

ADDRESS = ('127.0.0.1', 9)  # the port `discard`, to which nothing listens


def simulation(**options):
    return Simulation(1, faults=False, **options)


def connect(method, *args):
    with socket.socket() as sock:
        getattr(sock, method)(*args)


def send_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b'x', ADDRESS)


def submit():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(int)


REAL = {
    'create_connection': (lambda: socket.create_connection(ADDRESS), 'r.connect_tcp'),
    'connect': (lambda: connect('connect', ADDRESS), 'r.connect_tcp'),
    'connect_ex': (lambda: connect('connect_ex', ADDRESS), 'r.connect_tcp'),
    'bind': (lambda: connect('bind', ('127.0.0.1', 0)), 'r.listen_tcp'),
    'sendto': (send_datagram, 'r.bind_udp'),
    'http.client': (lambda: http.client.HTTPConnection(*ADDRESS).request('GET', '/'), 'r.connect_tcp'),
    'urllib': (lambda: urllib.request.urlopen('http://127.0.0.1:9/'), 'r.connect_tcp'),
    'getaddrinfo': (lambda: socket.getaddrinfo('localhost', 80), 'r.resolve'),
    'gethostbyname': (lambda: socket.gethostbyname('localhost'), 'r.resolve'),
    'time': (lambda: time.time(), 'r.now'),
    'monotonic': (lambda: time.monotonic(), 'r.now'),
    'sleep': (lambda: time.sleep(0), 'r.call_later'),
    'Thread': (lambda: threading.Thread(target=int).start(), 'r.run_in_thread'),
    'ThreadPoolExecutor': (submit, 'r.run_in_thread'),
}


def check_restored():
    for (owner, name), original in ORIGINALS.items():
        assert getattr(owner, name) is original
        assert not isinstance(vars(owner).get(name), Refused)


@pytest.mark.parametrize('what', list(REAL))
@pytest.mark.parametrize('where', ['main', 'a timer', 'a callback that catches it'])
def test_the_real_world_is_refused_with_what_to_use_instead(what, where):
    use, instead = REAL[what]

    def caught():
        try:
            use()
        except Exception:
            return

    def main(r):
        if where == 'main':
            use()
        r.call_later(1, use if where == 'a timer' else caught)

    with pytest.raises(SimulationFailed) as failed:
        simulation().run(main)
    text = str(failed.value)
    assert 'was called in a simulated run, at ' in text and 'test_reality.py:' in text
    assert f'Use {instead}' in text or f', {instead}' in text
    assert 'allow_real=True' in text
    check_restored()


@pytest.mark.parametrize('what', ['time', 'monotonic', 'sleep', 'bind', 'getaddrinfo', 'Thread', 'ThreadPoolExecutor'])
def test_it_can_be_allowed(what):
    use, _ = REAL[what]
    simulation(allow_real=True).run(lambda r: use())


def test_what_a_program_should_use_is_not_refused():
    done = []

    def main(r):
        server = r.listen_tcp('localhost', 80, on_close=lambda conn, exc: server.close())
        r.connect_tcp('localhost', 80, on_connect=lambda conn: conn.close())
        r.run_in_thread(int, on_done=lambda result, error: done.append(result))
        r.resolve('localhost', lambda addresses, error: done.append(addresses))
        r.call_later(1, lambda: done.append(r.now))

    simulation().run(main)
    assert len(done) == 3


def test_the_standard_library_may_read_the_clock(caplog):
    simulation().run(lambda r: logging.getLogger('program').warning('%s', 'in the run'))
    assert 'in the run' in caplog.text


def test_other_threads_may_use_the_real_world_during_a_run():
    runs, results, go, gone = simulation(), [], threading.Event(), threading.Event()

    def other():
        go.wait(10)
        results.append(time.time())
        connect('bind', ('127.0.0.1', 0))
        thread = threading.Thread(target=results.append, args=('a thread',))
        thread.start()
        thread.join(10)
        gone.set()

    thread = threading.Thread(target=other)
    thread.start()

    def main(r):
        go.set()
        gone.wait(10)

    runs.run(main)
    thread.join(10)
    assert len(results) == 2


def test_all_is_restored_after_a_run_that_fails():
    with pytest.raises(ZeroDivisionError):
        simulation().run(lambda r: 1 // 0)
    check_restored()


def test_a_simulation_inside_a_simulation_ends_nothing():
    def main(r):
        simulation().run(lambda r: r.call_later(1, int))
        time.time()

    with pytest.raises(SimulationFailed, match=r'time\.time'):
        simulation().run(main)
    check_restored()


def test_a_clock_that_the_user_has_put_in_place_is_left_alone(monkeypatch):
    def mine():
        return 17.0

    monkeypatch.setattr(time, 'time', mine)
    seen = []
    simulation().run(lambda r: seen.append(time.time()))
    assert seen == [17.0]
    assert time.time is mine


def test_a_function_that_the_program_replaces_is_left_alone(monkeypatch):
    monkeypatch.setattr(time, 'time', time.time)  # restored after this test
    mine = SimpleNamespace()
    simulation().run(lambda r: setattr(time, 'time', mine))
    assert time.time is mine


@given(st.data())
def test_hypothesis_works_inside_a_run(data):
    seen = []
    simulation().run(lambda r: seen.append(data.draw(st.integers())))
    assert len(seen) == 1
