"""Look-ups run outside the loop's thread, are reported once in the loop, time out, and can be cancelled."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import weakref
from socket import AF_INET, AF_INET6, SOCK_STREAM
from typing import Any

import pytest

from reactor import Reactor, ReactorError, ResolveError, ResolveTimeout
from reactor.kernel import Kernel
from reactor.loop.threads import LOOK_UP_THREADS, QUEUE_LIMIT, ThreadCall
from reactor.net.resolver import look_up
from tests.helpers.exhaustion import EXHAUSTED, Deep, Fault, need_faults
from tests.helpers.support import FakeKernel, Log, in_thread, run_until, turns


class Names(Kernel):
    """A kernel that records the arguments and threads of look-ups.

    Its answer is `found`: a list of addresses, or an exception to raise.
    """

    def __init__(self, found: Any = ()) -> None:
        self.found = found
        self.asked: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        self.asked.append((host, port, family, kind, flags))
        self.threads.add(threading.get_ident())
        if isinstance(self.found, BaseException):
            raise self.found
        return [(family, SOCK_STREAM, 6, '', address) for family, address in self.found]


class Slow(Names):
    """A kernel that answers look-ups only after the test has opened the gate."""

    def __init__(self, found: Any = ()) -> None:
        super().__init__(found)
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.at_once = self.most = 0

    def getaddrinfo(self, *args: Any) -> list[Any]:  # type: ignore[override]
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.gate.wait(10)
        with self.lock:
            self.at_once -= 1
        return super().getaddrinfo(*args)


class Stalled(FakeKernel):
    """A kernel whose look-ups are run by the test, and whose clock moves only in `select`."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[Any] = []

    def start_thread(self, target: Any, name: str) -> None:
        self.threads.append(target)

    def getaddrinfo(self, *args: Any) -> list[Any]:  # type: ignore[override]
        return [(AF_INET, SOCK_STREAM, 6, '', ('10.0.0.1', 80))]


class Answers(list):  # type: ignore[type-arg]
    def on_done(self, addresses: Any, error: Any) -> None:
        self.append((addresses, error))


def outcome(r: Reactor, kernel: Kernel, host: str = 'host.test', family: int = 0) -> tuple[Any, Any]:
    """Look up a name, check that `on_done` is called exactly once, and return what it was called with."""
    answers = Answers()
    look_up(r, kernel, host, 80, family, answers.on_done)
    run_until(r, lambda: answers)
    turns(r, 3)
    (answer,) = answers
    return answer


def test_a_name_of_this_machine_is_found_with_its_port(r):
    addresses, error = outcome(r, Kernel(), 'localhost')
    assert error is None
    assert all(family in (AF_INET, AF_INET6) and address[1] == 80 for family, address in addresses)
    assert {'127.0.0.1', '::1'} & {address[0] for _, address in addresses}


def test_addresses_keep_the_order_of_getaddrinfo(r):
    found = [(AF_INET6, ('fd00::2', 80, 0, 0)), (AF_INET, ('10.0.0.1', 80)), (AF_INET6, ('fd00::1', 80, 0, 0))]
    assert outcome(r, Names(found)) == (found, None)


@pytest.mark.scenario(102)
def test_getaddrinfo_is_called_for_streams_of_the_family(r):
    names = Names([(AF_INET, ('10.0.0.1', 80))])
    outcome(r, names, family=AF_INET)
    assert names.asked == [('host.test', 80, AF_INET, SOCK_STREAM, 0)]


def test_a_look_up_runs_in_another_thread_and_its_callback_in_the_loops(r):
    names, callback_threads = Names([(AF_INET, ('10.0.0.1', 80))]), []
    look_up(r, names, 'host.test', 80, 0, lambda addresses, error: callback_threads.append(threading.get_ident()))
    run_until(r, lambda: callback_threads)
    assert callback_threads == [threading.get_ident()]
    assert threading.get_ident() not in names.threads


def test_a_name_that_does_not_exist_is_a_resolve_error_that_names_it(r):
    addresses, error = outcome(r, Kernel(), 'nope.invalid')
    assert addresses is None and isinstance(error, ResolveError)
    assert 'nope.invalid' in str(error) and 'check' in str(error)


@pytest.mark.scenario(102)
@pytest.mark.parametrize('host', ['a' * 64 + '.test', 'a..b', '\udcff.test', 'x' * 300])
def test_an_invalid_name_is_a_resolve_error(r, host):
    addresses, error = outcome(r, Kernel(), host)
    assert addresses is None and isinstance(error, ResolveError)


@pytest.mark.parametrize(
    'failure',
    [socket.gaierror(socket.EAI_AGAIN, 'try again'), OSError(24, 'too many open files'), MemoryError(), SystemExit(1)],
    ids=lambda failure: type(failure).__name__,
)
def test_any_error_of_getaddrinfo_is_reported_as_a_resolve_error(r, failure):
    addresses, error = outcome(r, Names(failure))
    assert addresses is None and isinstance(error, ResolveError)
    assert 'host.test' in str(error)


def test_a_connect_to_a_name_without_addresses_is_reported_as_an_error(r):
    log = Log()
    r.kernel.getaddrinfo = NothingFound().getaddrinfo
    r.connect_tcp('host.test', 80, **log.callbacks('on_connect', 'on_close'))
    run_until(r, lambda: log)
    assert log.names() == ['close']
    assert isinstance(log[0][1], ResolveError)


class NothingFound(Names):
    def getaddrinfo(self, *args: Any) -> list[Any]:  # type: ignore[override]
        if len(args) == 5:  # the flag AI_NUMERICHOST is set
            raise socket.gaierror(socket.EAI_NONAME, 'not a number')
        return []


def test_a_numeric_address_needs_no_thread(r, monkeypatch):
    def no_thread(*args: Any) -> None:
        raise AssertionError('a thread was started')

    monkeypatch.setattr(r.kernel, 'start_thread', no_thread)
    listener = r.listen_tcp('127.0.0.1', 0)
    log = Log()
    conn = r.connect_tcp(*listener.address, on_connect=log.on_connect)
    run_until(r, lambda: log)
    listener.close()
    conn.abort()
    turns(r, 2)


@pytest.mark.scenario(100)
def test_a_look_up_that_stalls_delays_nothing_else(r):
    names, answers, ticks = Slow([(AF_INET, ('10.0.0.1', 80))]), Answers(), []
    look_up(r, names, 'host.test', 80, 0, answers.on_done)
    timer = r.call_every(0.002, lambda: ticks.append(len(answers)))
    run_until(r, lambda: len(ticks) > 5)
    assert set(ticks) == {0}
    names.gate.set()
    run_until(r, lambda: answers)
    timer.cancel()


def test_a_look_up_keeps_the_loop_running_and_why_alive_says_so(r):
    names, answers = Slow([(AF_INET, ('10.0.0.1', 80))]), Answers()
    look_up(r, names, 'host.test', 80, 0, answers.on_done)
    assert 'to return' in '\n'.join(r.why_alive())
    r.call_later(0.01, names.gate.set)
    assert r.run() is True
    assert len(answers) == 1


def test_a_cancelled_look_up_calls_nothing_and_lets_the_loop_end(r):
    names, answers = Slow([(AF_INET, ('10.0.0.1', 80))]), Answers()
    call = look_up(r, names, 'host.test', 80, 0, answers.on_done)
    run_until(r, lambda: names.at_once)
    call.close()
    call.close()
    assert call.closed and r.handles() == []
    assert r.run() is True
    names.gate.set()
    run_until(r, lambda: names.asked and not names.at_once)
    turns(r, 5)
    assert answers == []


def test_a_look_up_cancelled_after_its_answer_arrived_calls_nothing():
    kernel, answers = Stalled(), Answers()
    with Reactor(kernel=kernel) as r:
        call = look_up(r, kernel, 'host.test', 80, 0, answers.on_done)
        kernel.threads.pop()()
        call.close()
        r.run()
        turns(r, 3)
    assert answers == []


def test_a_look_up_cancelled_before_its_thread_started_never_runs():
    kernel, answers = Stalled(), Answers()
    with Reactor(kernel=kernel) as r:
        kernel.getaddrinfo = answers.append  # type: ignore[method-assign]
        look_up(r, kernel, 'host.test', 80, 0, answers.on_done).close()
        kernel.threads.pop()()
        turns(r, 3)
    assert answers == []


def test_an_answer_after_the_reactor_was_closed_is_silently_dropped():
    kernel, answers = Stalled(), Answers()
    with Reactor(kernel=kernel) as r:
        look_up(r, kernel, 'host.test', 80, 0, answers.on_done)
    kernel.threads.pop()()
    assert answers == []


@pytest.mark.scenario(100)
def test_at_most_four_look_ups_run_at_once_and_all_are_answered(r):
    names, answers = Slow([(AF_INET, ('10.0.0.1', 80))]), Answers()
    for _ in range(3 * LOOK_UP_THREADS):
        look_up(r, names, 'host.test', 80, 0, answers.on_done)
    run_until(r, lambda: names.at_once == LOOK_UP_THREADS)
    names.gate.set()
    run_until(r, lambda: len(answers) == 3 * LOOK_UP_THREADS)
    assert names.most == LOOK_UP_THREADS == 4
    assert r.run() is True


def test_look_ups_beyond_the_queue_limit_are_reported_as_errors_after_the_call():
    kernel, answers = Stalled(), Answers()
    with Reactor(kernel=kernel) as r:
        for _ in range(QUEUE_LIMIT + 2):
            look_up(r, kernel, 'host.test', 80, 0, answers.on_done)
        assert answers == []
        turns(r, 1)
        assert len(answers) == 2
        for addresses, error in answers:
            assert addresses is None and isinstance(error, ResolveError)
            assert 'host.test' in str(error)


def test_names_can_be_looked_up_again_after_all_threads_have_ended(r):
    for _ in range(3):
        assert outcome(r, Names([(AF_INET, ('10.0.0.1', 80))]))[1] is None
        r.run()


def test_a_finished_look_up_is_freed_without_the_garbage_collector():
    kernel = Stalled()
    answers = Answers()
    with Reactor(kernel=kernel) as r:
        freed = weakref.ref(look_up(r, kernel, 'host.test', 80, 0, answers.on_done))
        kernel.threads.pop()()
        r.run()
        assert len(answers) == 1
        assert freed() is None


# -- resolve and resolve_address


class Hung(Slow):
    """A kernel whose forward and reverse look-ups hang until the gate is opened."""

    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        self.asked.append((address, flags))
        self.gate.wait(10)
        return 'host.test', '0'

    def getaddrinfo(self, *args: Any) -> list[Any]:  # type: ignore[override]
        if len(args) == 5:  # the flag AI_NUMERICHOST is set
            return Kernel().getaddrinfo(*args)
        return super().getaddrinfo(*args)


@pytest.fixture
def hung():
    """A reactor whose look-ups hang until `kernel.gate` is opened, by the test or after it."""
    kernel = Hung([(AF_INET, ('10.0.0.1', 0)), (AF_INET6, ('fd00::1', 0, 0, 0)), (AF_INET, ('10.0.0.1', 0))])
    with Reactor(kernel=kernel) as reactor:
        yield reactor
        kernel.gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith('reactor-'):
            thread.join(10)


def resolved(r: Reactor, host: str, **options: Any) -> tuple[Any, Any]:
    answers = Answers()
    lookup = r.resolve(host, answers.on_done, **options)
    assert answers == [] and not lookup.closed
    run_until(r, lambda: answers)
    turns(r, 2)
    (answer,) = answers
    assert lookup.closed and r.handles() == []
    return answer


def test_a_name_is_resolved_to_a_list_of_addresses_as_text(r):
    addresses, error = resolved(r, 'localhost', timeout=10)
    assert error is None
    assert addresses and set(addresses) <= {'127.0.0.1', '::1'} and len(addresses) == len(set(addresses))


def test_each_address_is_listed_once_in_the_order_of_getaddrinfo(hung):
    hung.kernel.gate.set()
    assert resolved(hung, 'host.test') == (['10.0.0.1', 'fd00::1'], None)


def test_a_resolved_address_can_be_connected_to(r):
    log = Log()
    listener = r.listen_tcp('127.0.0.1', 0)

    def on_done(addresses: Any, error: Any) -> None:
        r.connect_tcp(addresses[0], listener.address[1], **log.callbacks('on_connect', 'on_close'), timeout=5)

    r.resolve('localhost', on_done, family=AF_INET)
    run_until(r, lambda: log)
    assert log.names() == ['connect']
    r.close()


def test_only_addresses_of_the_requested_family_are_resolved(r):
    assert resolved(r, 'localhost', family=AF_INET) == (['127.0.0.1'], None)


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', 'fe80::1%1'])
def test_a_numeric_address_is_answered_without_a_thread_but_after_the_call(r, host, monkeypatch):
    monkeypatch.setattr(r.kernel, 'start_thread', lambda *args: pytest.fail('a thread was started'))
    addresses, error = resolved(r, host, timeout=5)
    assert error is None and addresses[0].split('%')[0] == host.split('%')[0]


@pytest.mark.scenario(101)
def test_an_answer_without_a_thread_can_be_cancelled(r):
    answers = Answers()
    lookup = r.resolve('127.0.0.1', answers.on_done)
    lookup.close()
    lookup.close()
    assert r.run() is True
    assert answers == [] and lookup.closed


@pytest.mark.scenario(101)
def test_a_name_that_does_not_exist_is_reported_once(r):
    addresses, error = resolved(r, 'nope.invalid')
    assert addresses is None and type(error) is ResolveError and 'nope.invalid' in str(error)


def test_a_family_that_an_address_does_not_have_is_an_error(r):
    addresses, error = resolved(r, '127.0.0.1', family=AF_INET6)
    assert addresses is None and isinstance(error, ResolveError)


@pytest.mark.scenario(100)
def test_a_look_up_that_takes_too_long_is_reported_as_a_timeout_and_its_answer_dropped(hung):
    answers = Answers()
    lookup = hung.resolve('host.test', answers.on_done, timeout=0.02)
    run_until(hung, lambda: hung.kernel.at_once)
    run_until(hung, lambda: answers)
    ((addresses, error),) = answers
    assert addresses is None and isinstance(error, ResolveTimeout)
    assert isinstance(error, TimeoutError) and isinstance(error, ResolveError)
    assert "'host.test'" in str(error) and '0.02 s' in str(error)
    assert lookup.closed and hung.handles() == []
    hung.kernel.gate.set()
    assert hung.run() is True
    turns(hung, 3)
    assert len(answers) == 1


@pytest.mark.scenario(100)
def test_look_ups_that_wait_for_hung_ones_time_out_too_and_threads_stay_few(hung):
    answers = Answers()
    for _ in range(50):
        hung.resolve('host.test', answers.on_done, timeout=0.02)
    run_until(hung, lambda: len(answers) == 50)
    assert all(isinstance(error, ResolveTimeout) for _, error in answers)
    assert len([thread for thread in threading.enumerate() if thread.name.startswith('reactor-')]) <= LOOK_UP_THREADS
    hung.kernel.gate.set()
    assert resolved(hung, 'host.test')[1] is None
    assert len(hung.kernel.asked) <= LOOK_UP_THREADS + 1  # a look-up that times out before its thread starts never runs


def test_an_answer_in_time_leaves_no_timer(hung):
    hung.kernel.gate.set()
    assert resolved(hung, 'host.test', timeout=60)[1] is None
    assert len(hung.timers) == 0
    assert hung.run() is True


@pytest.mark.scenario(101)
def test_a_cancelled_resolve_calls_nothing_and_lets_the_loop_end(hung):
    answers = Answers()
    lookup = hung.resolve('host.test', answers.on_done, timeout=60)
    run_until(hung, lambda: hung.kernel.at_once)
    lookup.close()
    assert hung.handles() == [] and len(hung.timers) == 0
    assert hung.run() is True
    hung.kernel.gate.set()
    turns(hung, 3)
    assert answers == []


@pytest.mark.scenario(101)
def test_a_reactor_closed_while_look_ups_hang_ends_at_once_and_calls_nothing(hung):
    answers = Answers()
    lookups = [hung.resolve('host.test', answers.on_done, timeout=60) for _ in range(10)]
    lookups.append(hung.resolve_address('192.0.2.1', answers.on_done))
    run_until(hung, lambda: hung.kernel.at_once == LOOK_UP_THREADS)
    hung.close()
    assert all(lookup.closed for lookup in lookups) and hung.handles() == []
    hung.kernel.gate.set()
    assert answers == []


@pytest.mark.scenario(100)
def test_resolve_beyond_the_queue_limit_reports_an_error():
    kernel, answers = Stalled(), Answers()
    kernel.getaddrinfo = Hung.getaddrinfo.__get__(Hung())  # type: ignore[method-assign]
    with Reactor(kernel=kernel) as r:
        for _ in range(QUEUE_LIMIT + 1):
            r.resolve('host.test', answers.on_done)
        turns(r, 1)
        ((addresses, error),) = answers
        assert addresses is None and isinstance(error, ResolveError) and str(QUEUE_LIMIT) in str(error)


def test_a_look_up_keeps_the_loop_running_unless_unreferenced(hung):
    lookup = hung.resolve('host.test', Answers().on_done)
    (line,) = hung.why_alive()
    assert "<LookUp 'host.test'>" in line and "waits for an answer about 'host.test'" in line
    lookup.unref()
    assert hung.run() is True
    lookup.close()
    assert repr(lookup) == "<LookUp 'host.test' closed>"


@pytest.mark.scenario(101, 119)
def test_a_finished_resolve_is_freed_without_the_garbage_collector(hung):
    hung.kernel.gate.set()
    answers = Answers()
    freed = [weakref.ref(hung.resolve(host, answers.on_done, timeout=5)) for host in ('host.test', '127.0.0.1')]
    assert hung.run() is True
    assert len(answers) == 2
    assert [ref() for ref in freed] == [None, None]


@pytest.mark.scenario(115)
def test_an_exception_in_on_done_is_logged_and_the_loop_goes_on(r, caplog):
    def bad(addresses: Any, error: Any) -> None:
        raise ValueError('boom')

    for host in 'localhost', '127.0.0.1':
        r.resolve(host, bad)
    assert r.run() is True
    assert [record.exc_info[0] for record in caplog.records] == [ValueError] * 2


@pytest.mark.parametrize(
    ('arguments', 'options', 'error'),
    [
        ((None, print), {}, ValueError),
        (('', print), {}, ValueError),
        ((b'host', print), {}, TypeError),
        (('host', None), {}, TypeError),
        (('host', print), {'family': 99}, ValueError),
        (('host', print), {'timeout': -1}, ValueError),
        (('host', print), {'timeout': float('nan')}, ValueError),
    ],
)
def test_resolve_refuses_bad_arguments_at_the_call(r, arguments, options, error):
    with pytest.raises(error):
        r.resolve(*arguments, **options)
    assert r.handles() == [] and len(r.timers) == 0


def names_of(r: Reactor, address: Any, **options: Any) -> tuple[Any, Any]:
    answers = Answers()
    r.resolve_address(address, answers.on_done, **options)
    assert answers == []
    run_until(r, lambda: answers)
    (answer,) = answers
    assert r.handles() == []
    return answer


def test_an_address_is_resolved_to_its_name(r):
    expected = socket.getnameinfo(('127.0.0.1', 0), 0)[0]
    assert names_of(r, '127.0.0.1', timeout=10) == (expected, None)


@pytest.mark.parametrize('address', ['192.0.2.1', ('192.0.2.1', 80)])
def test_an_address_may_be_a_peername(hung, address):
    hung.kernel.gate.set()
    assert names_of(hung, address) == ('host.test', None)
    assert hung.kernel.asked[0][0] == ('192.0.2.1', 0)


def test_an_ipv6_peername_is_looked_up_as_ipv6(hung):
    hung.kernel.gate.set()
    assert names_of(hung, ('2001:db8::1', 80, 0, 0)) == ('host.test', None)
    assert hung.kernel.asked[0][0] == ('2001:db8::1', 0, 0, 0)


class Nameless(Kernel):
    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        assert flags & socket.NI_NAMEREQD
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')


@pytest.mark.scenario(101)
def test_an_address_without_a_name_is_a_resolve_error():
    with Reactor(kernel=Nameless()) as r:
        name, error = names_of(r, '192.0.2.1')
    assert name is None and type(error) is ResolveError and '192.0.2.1' in str(error)


def test_a_reverse_look_up_has_a_time_limit(hung):
    name, error = names_of(hung, '192.0.2.1', timeout=0.02)
    assert name is None and isinstance(error, ResolveTimeout) and '192.0.2.1' in str(error)


@pytest.mark.parametrize(
    ('address', 'error'),
    [
        ('localhost', ValueError),
        ('', ValueError),
        ((), TypeError),
        (None, TypeError),
        ((7,), TypeError),
    ],
)
def test_resolve_address_refuses_an_invalid_address(r, address, error):
    with pytest.raises(error):
        r.resolve_address(address, print)
    assert r.handles() == []


def test_another_thread_cannot_cancel_a_look_up_of_a_running_loop(hung):
    def other() -> None:
        with pytest.raises(ReactorError, match='thread'):
            in_thread(lookup.close)
        lookup.close()

    lookup = hung.resolve('host.test', Answers().on_done)
    hung.call_soon(other)
    assert hung.run() is True
    assert lookup.closed


def test_a_program_ends_although_a_look_up_hangs():
    code = """
import threading, reactor
from reactor.kernel import Kernel

class Hanging(Kernel):
    def getaddrinfo(self, host, port, family, kind, flags=0):
        if flags:
            return super().getaddrinfo(host, port, family, kind, flags)
        threading.Event().wait()

def main(r):
    r.resolve('host.test', lambda addresses, error: print(type(error).__name__), timeout=0.05)
    r.call_later(0.1, r.resolve, 'host.test', print)
    r.call_later(0.2, r.stop)

assert reactor.run(main, kernel=Hanging()) is False
print('closed')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'ResolveTimeout\nclosed\n', '')


def test_a_look_up_for_which_no_thread_can_be_started_is_reported_as_an_error(r, monkeypatch):
    def no_thread(*args):
        raise RuntimeError("can't start new thread")

    log = []
    monkeypatch.setattr(r.kernel, 'start_thread', no_thread)
    r.resolve('localhost', lambda *outcome: log.append(outcome))
    ends = Log()
    r.connect_tcp('localhost', 9, on_close=ends.on_close)
    assert r.run() is True
    ((found, error),) = log
    assert found is None and isinstance(error, ResolveError) and 'localhost' in str(error)
    assert ends.names() == ['close'] and isinstance(ends[0][1], ResolveError)


class ByHand(Kernel):
    """The real kernel, except that the test runs the threads and only one host name exists."""

    def __init__(self) -> None:
        self.threads: list[Any] = []

    def start_thread(self, target: Any, name: str) -> None:
        self.threads.append(target)

    def getaddrinfo(self, host: Any, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if flags:
            return super().getaddrinfo(host, port, family, kind, flags)
        return [(AF_INET, SOCK_STREAM, 6, '', ('127.0.0.1', port))]

    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        return 'host.test', '0'


STARTS = {
    'resolve': lambda r, done: r.resolve('host.test', done),
    'resolve, too late': lambda r, done: r.resolve('host.test', done, timeout=0),
    'resolve numbers': lambda r, done: r.resolve('127.0.0.1', done),
    'resolve_address': lambda r, done: r.resolve_address('127.0.0.1', done),
    'connect_udp': lambda r, done: r.connect_udp('host.test', 9, on_close=done),
}
FAULTS = {'stack': (Deep, 24), 'memory': (Fault, 60)}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('start', STARTS)
def test_an_answer_without_stack_or_memory_is_reported_once_there_is_some(start, fault, caplog):
    # Regression: the answer used to be lost, and the callback was never called. The look-up kept `run` running forever,
    # or the socket stayed CONNECTING.
    if fault == 'memory':
        need_faults()
    calls = bytearray(1)

    def done(result, error):
        calls[0] += 1  # this allocates no memory

    kind, until = FAULTS[fault]
    for n in range(1, until):
        kernel, calls[0] = ByHand(), 0
        with Reactor(kernel=kernel) as r:
            handle = STARTS[start](r, done)
            if start != 'resolve, too late':
                for run in kernel.threads:
                    run()
            try:
                kind(n).run(lambda r=r: r.run_once(0))
            except EXHAUSTED:
                pass
            turns(r, 5)
            if start == 'connect_udp':
                handle.close()  # this has no effect if the socket has failed
                turns(r, 1)
            assert (calls[0], handle.closed, r.why_alive()) == (1, True, []), n


@pytest.mark.parametrize('start', STARTS)
def test_a_look_up_without_stack_to_begin_does_not_keep_the_loop_running(start):
    raised, calls = 0, []
    for left in range(1, 16):
        with Reactor(kernel=ByHand()) as r:
            try:
                Deep(left).run(lambda r=r: STARTS[start](r, calls.append))
            except RecursionError:
                raised += 1
                assert [handle for handle in r.handles() if not isinstance(handle, ThreadCall)] == [], left
    assert raised and calls == []
