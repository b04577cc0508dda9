"""Error messages and warnings: they say what happened, show the value that the user passed, and say what to do."""

from __future__ import annotations

import ast
import functools
import gc
import re
import signal
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import reactor
from tests.helpers.support import run_until, turns


@pytest.fixture
def r():
    """A reactor on the default selector only: messages do not depend on the selector."""
    with reactor.Reactor() as r:
        yield r


def refusal(call, *args, **options) -> str:
    """Return the message of the TypeError or ValueError that a call raises."""
    with pytest.raises((TypeError, ValueError)) as refused:
        call(*args, **options)
    return str(refused.value)


# -- callbacks with the wrong number of arguments


def one(first): ...


def none(): ...


def three(first, second, third): ...


def needs_keyword(conn, data, *, flag): ...


class Handler:
    def on_data(self, conn): ...

    def takes_two(self, conn, data): ...


LINE = one.__code__.co_firstlineno


@pytest.mark.parametrize(
    ('name', 'fn', 'signature', 'takes'),
    [
        ('on_data', one, '(conn, data)', 'takes 1 argument'),
        ('on_data', three, '(conn, data)', 'takes 3 arguments'),
        ('on_data', needs_keyword, '(conn, data)', 'needs the keyword argument flag'),
        ('on_data', Handler().on_data, '(conn, data)', 'takes 1 argument'),
        ('on_data', lambda: None, '(conn, data)', 'takes 0 arguments'),
        ('on_connect', none, '(conn)', 'takes 0 arguments'),
        ('on_eof', none, '(conn)', 'takes 0 arguments'),
        ('on_drain', none, '(conn)', 'takes 0 arguments'),
        ('on_close', one, '(conn, exc)', 'takes 1 argument'),
        ('on_error', one, '(conn, exc)', 'takes 1 argument'),
        ('on_accept_error', one, '(listener, exc)', 'takes 1 argument'),
    ],
)
def test_a_callback_with_the_wrong_number_of_arguments_is_refused_at_the_call(r, name, fn, signature, takes):
    message = refusal(r.listen_tcp, '127.0.0.1', 0, **{name: fn})
    assert f'{name} is called with {signature}' in message and takes in message
    assert fn.__qualname__ in message and re.search(r'test_messages\.py:\d+', message)
    assert r.handles() == []


def test_the_message_says_where_the_callback_is(r):
    assert f'{__name__}.one (test_messages.py:{LINE})' in refusal(r.listen_tcp, '127.0.0.1', 0, one)


@pytest.mark.parametrize(
    'fn',
    [
        lambda conn, data: None,
        lambda conn, data, more=None: None,
        lambda *args: None,
        lambda conn, *args: None,
        lambda conn, data, *, flag=True: None,
        lambda conn=None, data=None: None,
        Handler().takes_two,
        functools.partial(three, 1),
        print,
        dict,
    ],
)
def test_a_callback_that_can_be_called_is_accepted(r, fn):
    r.listen_tcp('127.0.0.1', 0, fn).close()


@pytest.mark.parametrize(
    'give',
    [
        lambda r, fn: r.connect_tcp('127.0.0.1', 9, fn),
        lambda r, fn: r.bind_udp('127.0.0.1', 0, fn),
        lambda r, fn: r.resolve('localhost', fn),
        lambda r, fn: r.resolve_address('127.0.0.1', fn),
        lambda r, fn: r.run_in_thread(print, on_done=fn),
        lambda r, fn: r.spawn(['true'], on_exit=fn),
        lambda r, fn: r.add_drain_callback(fn),
        lambda r, fn: r.run(fn),
    ],
)
def test_every_method_that_takes_a_callback_checks_it(r, give):
    assert 'is called with (' in refusal(give, r, none)


@pytest.mark.parametrize(
    'give',
    [
        lambda r, fn, *args: r.call_at(r.now + 1, fn, *args),
        lambda r, fn, *args: r.call_every(1, fn, *args),
        lambda r, fn, *args: r.call_soon_threadsafe(fn, *args),
        lambda r, fn, *args: r.add_signal_handler(signal.SIGUSR1, fn, *args),
        lambda r, fn, *args: r.run_in_thread(fn, *args),
        lambda r, fn, *args: r.idle(fn, *args),
        lambda r, fn, *args: r.notifier(fn, *args),
        lambda r, fn, *args: r.add_exit_callback(fn, *args),
    ],
)
def test_a_function_that_cannot_take_its_own_arguments_is_refused_at_the_call(r, give):
    place = f'{__name__}.one (test_messages.py:{LINE})'
    assert f'is called with 0 arguments, but {place} takes 1 argument' in refusal(give, r, one)
    assert f'is called with 2 arguments, but {place} takes 1 argument' in refusal(give, r, one, 1, 2)
    assert r.handles() == [] and len(r.timers) == 0
    with reactor.Reactor(debug=True) as other:
        assert 'is called with 0 arguments' in refusal(other.call_later, 1, one)
        assert 'is called with 1 argument, but' in refusal(other.call_soon, none, 1)


# -- coroutine functions


async def coroutine(*args): ...


async def generator(*args):
    yield


class Coroutines:
    async def on_data(self, conn, data): ...


@pytest.mark.parametrize('fn', [coroutine, generator, Coroutines().on_data], ids=['def', 'generator', 'method'])
@pytest.mark.parametrize(
    'give',
    [
        lambda r, fn: r.listen_tcp('127.0.0.1', 0, fn),
        lambda r, fn: r.listen_tcp('127.0.0.1', 0, on_accept_error=fn),
        lambda r, fn: r.connect_tcp('127.0.0.1', 9, on_close=fn),
        lambda r, fn: r.bind_udp('127.0.0.1', 0, fn),
        lambda r, fn: r.resolve('localhost', fn),
        lambda r, fn: r.resolve_address('127.0.0.1', fn),
        lambda r, fn: r.run_in_thread(fn),
        lambda r, fn: r.run_in_thread(print, on_done=fn),
        lambda r, fn: r.spawn(['true'], on_exit=fn),
        lambda r, fn: r.add_drain_callback(fn),
        lambda r, fn: r.add_exit_callback(fn),
        lambda r, fn: r.add_signal_handler(signal.SIGUSR1, fn),
        lambda r, fn: r.call_soon_threadsafe(fn),
        lambda r, fn: r.call_later(1, fn),
        lambda r, fn: r.call_at(r.now + 1, fn),
        lambda r, fn: r.call_every(1, fn),
        lambda r, fn: r.idle(fn),
        lambda r, fn: r.notifier(fn),
        lambda r, fn: r.watch_fd(0, 0, fn),
        lambda r, fn: r.watch_path('.', fn),
        lambda r, fn: r.run(fn),
    ],
)
def test_a_coroutine_function_is_refused_because_nothing_would_run_it(r, give, fn):
    message = refusal(give, r, fn)
    assert fn.__qualname__ in message and re.search(r'test_messages\.py:\d+', message)
    assert 'async def' in message and 'never run' in message and 'use def' in message
    assert r.handles() == [] and len(r.timers) == 0


def test_call_soon_checks_for_coroutine_functions_in_debug_mode_only():
    """It is called most often of all methods, and Python itself warns of a coroutine that was never awaited."""
    with reactor.Reactor(debug=True) as r:
        assert 'async def' in refusal(r.call_soon, coroutine)


# -- failures that no callback would get


@pytest.fixture
def nowhere():
    """The address of a port at which there is no listener."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()


@pytest.mark.parametrize(
    ('connect', 'reason'),
    [
        (lambda r, place: r.connect_tcp(*place), 'refused'),
        (lambda r, place: r.connect_tcp('no-such-host.invalid', 80), 'no-such-host.invalid'),
        (lambda r, place: r.connect_unix('/no/such/socket'), '/no/such/socket'),
        (lambda r, place: r.connect_udp('no-such-host.invalid', 80), 'no-such-host.invalid'),
    ],
)
def test_a_failed_connect_without_on_close_is_logged_once(r, nowhere, caplog, connect, reason):
    connect(r, nowhere)
    run_until(r, lambda: not r.handles())
    turns(r, 2)
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and reason in record.getMessage() and 'on_close' in record.getMessage()
    connect(r, nowhere)
    run_until(r, lambda: not r.handles())
    turns(r, 2)
    assert len(caplog.records) == 1  # the same failure within a second


def test_a_failed_connect_with_on_close_is_not_logged(r, nowhere, caplog):
    ends = []
    r.connect_tcp(*nowhere, on_close=lambda conn, exc: ends.append(exc))
    late = r.connect_unix('/no/such/socket')  # it has failed already when the program sets `on_close`
    late.on_close = lambda conn, exc: ends.append(exc)
    run_until(r, lambda: len(ends) == 2)
    assert not caplog.records


def test_a_connect_that_the_program_has_closed_is_not_logged(r, nowhere, caplog):
    r.connect_tcp(*nowhere).close()
    r.connect_tcp(*nowhere).abort(LookupError('my own reason'))
    turns(r, 3)
    assert not caplog.records


def test_a_failed_tls_handshake_of_a_client_without_on_close_is_logged_once(r, caplog):
    server = r.listen_tcp('127.0.0.1', 0, on_connect=lambda conn: conn.close())
    r.connect_tcp(*server.address, ssl=True)
    run_until(r, lambda: caplog.records)
    turns(r, 3)
    (record,) = caplog.records
    assert 'TLS handshake' in record.getMessage() and 'on_close' in record.getMessage()
    server.close()


def test_an_exception_in_a_thread_without_on_done_is_logged_with_its_traceback(r, caplog):
    for _ in range(2):
        r.run_in_thread(failing)
    run_until(r, lambda: not r.handles())
    (record,) = caplog.records
    assert f'{__name__}.failing' in record.getMessage() and 'on_done' in record.getMessage()
    assert record.exc_info[0] is LookupError


def test_an_exception_in_a_thread_that_is_passed_on_or_cancelled_is_not_logged(r, caplog):
    errors = []
    r.run_in_thread(failing, on_done=lambda result, error: errors.append(error))
    r.run_in_thread(failing).close()
    run_until(r, lambda: errors)
    turns(r, 3)
    assert not caplog.records


# -- other mistakes with callbacks and deadlines


def test_a_function_that_was_called_instead_of_passed_is_recognised(r):
    for method in (r.call_soon, r.call_soon_threadsafe, functools.partial(r.call_later, 1)):
        message = refusal(method, None)
        assert 'None' in message and 'called instead of passed' in message
    assert 'called instead' not in refusal(r.call_soon, 'x')


def test_a_deadline_by_the_wrong_clock_causes_a_warning(r):
    with pytest.warns(RuntimeWarning, match=r'call_at\(.*r\.now.*time\.time\(\)') as warned:
        timer = r.call_at(time.time() + 1, none)
    assert warned[0].filename == __file__
    timer.cancel()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r.call_at(r.now + 86400 * 300, none).cancel()
        r.call_later(86400 * 365 * 56, none).cancel()


# -- hosts


@pytest.mark.parametrize('host', ['http://example.org', 'https://example.org/path', 'tcp://127.0.0.1:80'])
def test_a_url_is_not_a_host(r, host):
    message = refusal(r.connect_tcp, host, 80)
    assert repr(host) in message and 'not a URL' in message
    assert 'not a URL' in refusal(r.listen_tcp, host, 80)


@pytest.mark.parametrize(('host', 'cure'), [('example.org:80', 'port'), ('127.0.0.1:80', 'port'), ('[::1]', '::1')])
def test_a_host_with_a_port_or_brackets_is_taken_apart_in_the_message(r, host, cure):
    message = refusal(r.connect_tcp, host, 80)
    assert repr(host) in message and cure in message
    for good in ('::1', 'fe80::1%lo'):
        r.connect_tcp(good, 80).abort()
    turns(r, 2)


# -- TLS


def test_the_message_explains_how_to_make_a_context_for_a_server(r):
    message = refusal(r.listen_tcp, '127.0.0.1', 0, ssl=True)
    assert 'True' in message and 'load_cert_chain' in message
    message = refusal(r.listen_tcp, '127.0.0.1', 0, ssl=ssl.create_default_context())
    assert 'this side is the server' in message and 'ssl.Purpose.CLIENT_AUTH' in message


def test_a_server_without_a_certificate_is_named_as_the_reason(r):
    ends = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = r.listen_tcp('127.0.0.1', 0, ssl=context, on_close=lambda conn, exc: ends.append(str(exc)))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    r.connect_tcp(*server.address, ssl=trusting)
    run_until(r, lambda: ends)
    assert 'NO_SHARED_CIPHER' in ends[0] and 'load_cert_chain' in ends[0]
    server.close()
    turns(r, 3)


# -- exceptions in callbacks


def failing(*args):
    raise LookupError('oh no')


def test_the_log_names_the_callback_that_raised_and_its_line(r, caplog):
    r.call_later(0, failing)
    r.call_soon(failing)
    run_until(r, lambda: len(caplog.records) == 2)
    place = f'{__name__}.failing (test_messages.py:{failing.__code__.co_firstlineno})'
    texts = sorted(record.getMessage() for record in caplog.records)
    assert texts == [f'exception in the callback {place}', f'exception in the timer callback {place}']


def test_the_log_names_the_callback_and_its_connection(r, sockets, caplog):
    ours, theirs = sockets()
    r.adopt(ours, failing)
    theirs.send(b'x')
    run_until(r, lambda: caplog.records)
    (record,) = caplog.records
    place = f'{__name__}.failing (test_messages.py:{failing.__code__.co_firstlineno})'
    assert record.getMessage().startswith(f'exception in the callback {place} of <Stream')


def test_equal_exceptions_of_clients_are_logged_once_a_second(kernel, fake, sockets, caplog):
    def other(*args):
        raise LookupError('oh no')

    def fail(on_data):
        ours, theirs = sockets()
        fake.adopt(ours, on_data)
        theirs.send(b'x')
        turns(fake, 3)

    for _ in range(5):
        fail(failing)
    assert len(caplog.records) == 1
    fail(other)
    assert len(caplog.records) == 2  # `other` is another callback, whose exception has not been logged yet
    kernel.time += 1.5
    fail(failing)
    assert len(caplog.records) == 3
    assert fake.stats().callback_errors == 7


# -- reactors


def test_a_forgotten_reactor_causes_a_warning():
    def forget():
        r = reactor.Reactor()
        r.listen_tcp('127.0.0.1', 0)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        forget()
        gc.collect()
    (message,) = [str(one.message) for one in warned if 'never run' in str(one.message)]
    assert 'with 1 handle, such as <Listener' in message and 'call run()' in message


def test_a_reactor_that_was_run_or_closed_or_holds_nothing_causes_no_warning():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        reactor.Reactor().close()
        with reactor.Reactor() as r:
            r.listen_tcp('127.0.0.1', 0)
        r = reactor.Reactor()
        r.run()
        del r
        gc.collect()
    assert not [one for one in warned if 'never run' in str(one.message)]


def test_debug_reports_slow_callbacks(caplog):
    with reactor.Reactor(debug=True) as r:
        r.call_soon(time.sleep, 0.11)
        r.run()
    assert [record.getMessage() for record in caplog.records if 'slow callback: time.sleep' in record.getMessage()]
    caplog.clear()
    with reactor.Reactor(debug=True, slow_callback=10) as r:
        r.call_soon(time.sleep, 0.11)
        r.run()
    assert not caplog.records


# -- all messages

PACKAGE = Path(reactor.__file__).parent
# Parts of messages that need no value: either only one value is possible, or the value would explain nothing.
NOTHING_TO_SHOW = [
    'is empty', 'at least one byte', 'not None', 'this ssl.SSLContext', 'its header', 'proxy_protocol must be',
    'needs an address', 'only regular files', 'an abstract path', 'the key is encrypted', 'this is not JSON',
]  # fmt: skip


def messages() -> Iterator[tuple[str, str, str, bool]]:
    """Generate (place, class, text, whether it shows a value) for each error, except in the simulation and the demo."""
    for path in sorted(PACKAGE.rglob('*.py')):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in ('testing', 'demo'):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                inside = [part for argument in node.exc.args for part in ast.walk(argument)]
                words = [
                    part.value for part in inside if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                shows = any(isinstance(part, ast.FormattedValue | ast.Name) for part in inside)
                yield f'{place}:{node.lineno}', ast.unparse(node.exc.func), ' '.join(words), shows


def test_each_error_that_is_raised_says_more_than_a_name():
    found = list(messages())
    assert len(found) > 200
    # `SystemExit` only ends a worker, and `_cut_short()` builds its error itself, so the text is not in the `raise`
    # statement.
    made_here = [
        (place, text, shows) for place, kind, text, shows in found if kind not in ('SystemExit', 'self._cut_short')
    ]
    assert [place for place, text, shows in made_here if len(text.split()) < 4 and not shows] == []


def test_each_refused_argument_is_shown_in_the_message():
    refused = [(place, text, shows) for place, kind, text, shows in messages() if kind in ('TypeError', 'ValueError')]
    assert len(refused) > 90
    hidden = [
        f'{place}: {text}'
        for place, text, shows in refused
        if not shows and not any(part in text for part in NOTHING_TO_SHOW)
    ]
    assert hidden == []


def test_each_closed_handle_says_what_to_do():
    closed = [(place, text) for place, kind, text, _ in messages() if kind in ('HandleClosed', 'ConnectionClosed')]
    assert len(closed) > 8
    cures = ('make a new one', 'again', 'check ', 'must be', 'once=True', 'is closed or not connected yet')
    assert [f'{place}: {text}' for place, text in closed if not any(cure in text for cure in cures)] == []


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_warnings_name_the_line_of_the_caller(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'warnings.warn':
            assert {'stacklevel'} <= {keyword.arg for keyword in node.keywords}
