"""Requests in flight: each ends exactly once, with an answer, an error or a time limit, and never inside a call."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reactor
from reactor import ConnectionClosed, Reactor, Requests, RequestTimeout, Stream, TooManyRequests
from reactor.testing import SimKernel, Simulation, World
from tests.helpers.support import FakeKernel


@pytest.fixture
def done() -> list[Any]:
    return []


def into(done: list[Any]) -> Any:
    return lambda answer, error: done.append((answer, error))


# -- answers


def test_an_answer_reaches_its_request_in_a_later_phase(fake, done):
    requests: Requests[str] = Requests(fake)
    first, second = requests.add(into(done)), requests.add(into(done))
    assert (first.id, second.id, len(requests)) == (1, 2, 2) and 1 in requests and not first.closed
    assert requests.answer(2, 'two') and requests.answer(1, 'one')
    assert done == [], 'no callback runs inside a call'
    assert first.closed and len(requests) == 0 and 1 not in requests
    fake.run_once(0)
    assert done == [('two', None), ('one', None)]


def test_none_is_an_answer(fake, done):
    requests: Requests[None] = Requests(fake)
    requests.add(into(done))
    assert requests.answer(1, None)
    fake.run_once(0)
    assert done == [(None, None)]


@pytest.mark.parametrize('id', [2, 'x', None, [1], {'a': 1}])
def test_an_answer_without_a_request_is_counted(fake, done, id):
    requests: Requests[str] = Requests(fake)
    requests.add(into(done))
    assert not requests.answer(id, 'x') and not requests.fail(id, OSError())
    assert requests.answer(1, 'x') and not requests.answer(1, 'x')
    fake.run_once(0)
    assert done == [('x', None)] and requests.unknown == 3


def test_an_id_can_be_given(fake, done):
    requests: Requests[str] = Requests(fake)
    for id in 'a', 1, (2, 3):
        assert requests.add(into(done), id=id).id == id
    assert requests.add(into(done)).id == 2, 'an id in use is not drawn'
    with pytest.raises(ValueError, match="a request with the id 'a' is waiting"):
        requests.add(into(done), id='a')
    requests.answer('a', 'x')
    assert requests.add(into(done), id='a').id == 'a'


def test_a_drawn_id_is_never_drawn_again(fake, done):
    requests: Requests[str] = Requests(fake)
    ids = []
    for _ in range(3):
        ids.append(requests.add(into(done)).id)
        requests.fail_all()
    assert ids == [1, 2, 3]


def test_an_error_instead_of_an_answer(fake, done):
    requests: Requests[str] = Requests(fake)
    requests.add(into(done))
    error = ValueError('no')
    assert requests.fail(1, error)
    fake.run_once(0)
    assert done == [(None, error)]


def test_an_exception_in_on_done_hurts_no_other_request(fake, done, caplog):
    def fails(answer: Any, error: Any) -> None:
        raise RuntimeError('no')

    requests: Requests[str] = Requests(fake)
    requests.add(fails)
    requests.add(into(done))
    requests.fail_all(OSError())
    fake.run_once(0)
    assert len(done) == 1 and 'RuntimeError' in caplog.text


# -- the end of the connection


def test_all_requests_fail_when_the_connection_ends(fake, done):
    requests: Requests[str] = Requests(fake, timeout=5)
    for _ in range(3):
        requests.add(into(done))
    error = ConnectionResetError()
    assert requests.fail_all(error) == 3 and requests.fail_all(error) == 0
    assert fake.run(), 'the timers of the time limits are cancelled'
    assert done == [(None, error)] * 3 and len(requests) == 0
    assert fake.kernel.time == 1000


def test_without_an_error_requests_fail_with_connection_closed(fake, done):
    requests: Requests[str] = Requests(fake)
    requests.add(into(done))
    requests.fail_all(None)
    fake.run_once(0)
    assert type(done[0][1]) is ConnectionClosed


def test_a_request_added_while_others_fail_is_not_failed_with_them(fake, done):
    requests: Requests[str] = Requests(fake)
    requests.add(lambda answer, error: requests.add(into(done)))
    requests.fail_all()
    fake.run_once(0)
    assert len(requests) == 1 and done == []


# -- time limits


def test_a_request_without_an_answer_fails_at_its_time_limit(fake, done):
    requests: Requests[str] = Requests(fake, timeout=5)
    request = requests.add(into(done))
    requests.add(into(done), timeout=2)
    assert fake.run()
    assert [type(error) for _, error in done] == [RequestTimeout] * 2
    assert 'request 2 was not answered within 2 s' in str(done[0][1])
    assert fake.kernel.time == 1005 and requests.timed_out == 2 and request.closed
    assert not requests.answer(request.id, 'late') and requests.unknown == 1


def test_a_deadline_is_handed_down(fake, done):
    outer: Requests[str] = Requests(fake, timeout=10)
    inner: Requests[str] = Requests(fake, timeout=60)
    request = outer.add(into(done))
    fake.kernel.time += 4
    assert request.deadline == 1010 and request.time_left == 6
    caused = inner.add(into(done), deadline=request.deadline)
    assert caused.deadline == 1010
    assert inner.add(into(done), timeout=1, deadline=request.deadline).deadline == 1005
    assert inner.add(into(done)).deadline == 1064
    fake.kernel.time += 7
    assert request.time_left == 0
    assert requests_without_limit(fake, done).time_left is None
    assert inner.add(into(done), deadline=500).time_left == 0
    fake.run_once(0)
    assert len(done) == 4


def requests_without_limit(r: Reactor, done: list[Any]) -> Any:
    return Requests(r).add(into(done))


def test_an_answered_request_does_not_time_out(fake, done):
    requests: Requests[str] = Requests(fake, timeout=5)
    requests.add(into(done))
    requests.answer(1, 'x')
    assert fake.run()
    assert done == [('x', None)] and requests.timed_out == 0


# -- abandoned requests, and limits


def test_a_closed_request_is_forgotten(fake, done):
    requests: Requests[str] = Requests(fake, timeout=5)
    request, answered = requests.add(into(done)), requests.add(into(done))
    request.close()
    request.close()
    assert request.closed and len(requests) == 1 and not requests.answer(1, 'x')
    requests.answer(answered.id, 'x')
    answered.close()
    assert fake.run()
    assert done == [], 'not even an answer that has arrived is reported after close'


def test_closing_a_request_leaves_a_later_one_with_its_id_alone(fake, done):
    requests: Requests[str] = Requests(fake)
    first = requests.add(into(done), id='a')
    requests.fail('a', OSError())
    second = requests.add(into(done), id='a')
    first.close()
    assert not second.closed and 'a' in requests


def test_a_full_table_refuses_requests(fake, done):
    requests: Requests[str] = Requests(fake, max_pending=2)
    requests.add(into(done))
    requests.add(into(done))
    with pytest.raises(TooManyRequests, match=r'2 requests are waiting for their answers \(max_pending\)'):
        requests.add(into(done))
    requests.answer(1, 'x')
    assert requests.add(into(done)).id == 3


@pytest.mark.parametrize(
    ('error', 'message', 'call'),
    [
        (TypeError, 'r must be a Reactor, not None', lambda r: Requests(None)),
        (TypeError, 'timeout must be a number of seconds', lambda r: Requests(r, timeout='5')),
        (ValueError, 'max_pending must be', lambda r: Requests(r, max_pending=0)),
        (TypeError, 'on_done must be callable', lambda r: Requests(r).add(None)),
        (TypeError, r'on_done is called with \(answer, error\)', lambda r: Requests(r).add(lambda answer: None)),
        (ValueError, 'timeout must be', lambda r: Requests(r).add(print, timeout=-1)),
        (TypeError, 'deadline must be a number of seconds', lambda r: Requests(r).add(print, deadline='soon')),
        (TypeError, 'unhashable', lambda r: Requests(r).add(print, id=[])),
    ],
)
def test_wrong_arguments_are_refused(fake, error, message, call):
    with pytest.raises(error, match=message):
        call(fake)


def test_a_closed_reactor_adds_no_request_and_reports_none(done):
    r = Reactor(kernel=FakeKernel())
    requests: Requests[str] = Requests(r, timeout=5)
    requests.add(into(done))
    r.close()
    with pytest.raises(reactor.HandleClosed):
        requests.add(into(done))
    assert len(requests) == 1 and done == []


def test_repr(fake, done):
    requests: Requests[str] = Requests(fake)
    request = requests.add(into(done), id='a')
    assert repr(request) == "<PendingRequest 'a'>"
    request.close()
    assert repr(request) == "<PendingRequest 'a' closed>"


def test_ended_requests_are_freed_without_the_garbage_collector(fake):
    class OnDone:
        def __call__(self, answer: Any, error: Any) -> None:
            pass

    requests: Requests[str] = Requests(fake, timeout=5)
    made = [OnDone() for _ in range(4)]
    watched = [weakref.ref(each) for each in made]
    ids = [requests.add(each).id for each in made]
    del made
    gc.disable()
    try:
        requests.answer(ids[0], 'x')
        requests.fail(ids[1], OSError())
        requests._pending[ids[2]].close()
        fake.run()
        assert [ref() for ref in watched] == [None] * 4
    finally:
        gc.enable()


# -- against a model, and on simulated systems

STEPS = st.one_of(
    st.tuples(st.just('add'), st.integers(0, 3), st.sampled_from([None, 1.0, 3.0])),
    st.tuples(st.sampled_from(['answer', 'fail', 'close']), st.integers(0, 3), st.none()),
    st.tuples(st.sampled_from(['fail_all', 'wait', 'turn']), st.none(), st.none()),
)


@given(st.lists(STEPS, max_size=40))
def test_each_request_ends_once_as_in_a_model(steps):
    """The model is a dict of ids to (number of the request, deadline), and a list of the ends that are due."""
    kernel = FakeKernel()
    with Reactor(kernel=kernel) as r:
        requests: Requests[int] = Requests(r, max_pending=3)
        model: dict[int, tuple[int, float | None]] = {}
        expected: dict[int, str] = {}
        got: dict[int, list[str]] = {}
        made: list[Any] = []

        def report(number: int) -> Any:
            return lambda answer, error: got.setdefault(number, []).append(
                'answer' if error is None else type(error).__name__
            )

        def expire() -> None:
            for id, (number, deadline) in list(model.items()):
                if deadline is not None and deadline <= kernel.time:
                    expected[number] = 'RequestTimeout'
                    del model[id]

        for what, id, timeout in steps:
            if what == 'add':
                if id in model or len(model) == 3:
                    with pytest.raises((ValueError, TooManyRequests)):
                        requests.add(report(len(made)), id=id, timeout=timeout)
                else:
                    model[id] = len(made), None if timeout is None else kernel.time + timeout
                    made.append(requests.add(report(len(made)), id=id, timeout=timeout))
            elif what in ('answer', 'fail'):
                found = model.pop(id, None)
                if found is not None:
                    expected[found[0]] = 'answer' if what == 'answer' else 'OSError'
                assert (requests.answer(id, 1) if what == 'answer' else requests.fail(id, OSError())) == bool(found)
            elif what == 'close':
                if id in model:
                    made[model.pop(id)[0]].close()
            elif what == 'fail_all':
                expected.update({number: 'ConnectionClosed' for number, _ in model.values()})
                assert requests.fail_all() == len(model)
                model.clear()
            else:
                kernel.time += 1 if what == 'wait' else 0
                r.run_once(0)
                expire()
            assert len(requests) == len(model)
        r.run_once(0)
        expire()
        assert got == {number: [end] for number, end in expected.items()}


def asks_many(world: World) -> None:
    """A client sends questions with ids; the server answers late, twice, wrongly, or not at all."""
    host, port = world.address()
    count = 20
    ends: list[int] = []
    done = world.expect('each question has ended')

    def on_question(conn: Stream, data: bytes) -> None:
        for id in data:
            draw = world.random.random()
            if draw < 0.1:
                conn.abort()
                return
            if draw < 0.8 and not conn.closed:
                conn.write(bytes([id] * (1 + (draw < 0.2))))
            elif draw < 0.9:
                conn.loop.call_later(draw * 10, answer_late, conn, id)

    def answer_late(conn: Stream, id: int) -> None:
        if not conn.closed:
            conn.write(bytes([id]))

    def on_answer(conn: Stream, data: bytes) -> None:
        for id in data:
            requests.answer(id, id)

    def on_up(conn: Stream) -> None:
        while len(requests) < 3 and asked[0] < count:
            asked[0] += 1
            request = requests.add(partial(on_done, asked[0]))
            conn.write(bytes([request.id]))  # type: ignore[list-item]

    def on_done(number: int, answer: int | None, error: BaseException | None) -> None:
        if (answer is None) == (error is None):
            world.fail('an answer and an error, or neither')
        if number in ends:
            world.fail(f'question {number} has ended twice')
        ends.append(number)
        if len(ends) == count:
            client.stop()
            server.close()
            done.met()
        elif client.conn is not None and client.conn.state == 'OPEN':
            on_up(client.conn)

    asked = [0]
    requests: Requests[int] = Requests(world.r, timeout=8, max_pending=3)
    server = world.r.listen_tcp(host, port, on_question)
    client = reactor.reconnect(
        lambda: world.r.connect_tcp(
            host, port, on_answer, timeout=10, on_close=lambda conn, exc: requests.fail_all(exc)
        ),
        on_up,
    )


def test_each_question_ends_once_on_a_simulated_system_with_faults():
    for seed in range(60):
        Simulation(seed).run_program(asks_many)


def test_the_same_table_serves_a_simulated_reactor_without_faults(done):
    with Reactor(kernel=SimKernel(3, faults=False)) as r:
        requests: Requests[str] = Requests(r, timeout=3600)
        requests.add(into(done))
        assert r.run()
    assert type(done[0][1]) is RequestTimeout


@pytest.mark.parametrize('error', [None, 'oops', ValueError])
def test_an_error_that_is_no_exception_is_refused_and_the_request_still_waits(fake, done, error):
    requests: Requests[str] = Requests(fake)
    requests.add(into(done))
    with pytest.raises(TypeError, match='error must be an exception'):
        requests.fail(1, error)
    if error is not None:
        with pytest.raises(TypeError, match='error must be an exception'):
            requests.fail_all(error)
    assert 1 in requests
