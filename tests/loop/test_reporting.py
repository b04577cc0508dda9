"""Reporting an error cannot itself fail, even when the reported object or the code that receives the report raises.

`Foul` is a callback that can only be called: its repr, name, truth value, hash and comparisons raise. When it is
called, it raises an exception whose text cannot be read either. The table WAYS passes a `Foul` to every parameter of
the API that takes a callback. Each entry of the table is tested with each kind of broken logger.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import io
import logging
import signal
import socket
import sys
import types
from pathlib import Path

import pytest

import reactor
from reactor import READ, WRITE, Limits, Reactor
from reactor.loop.failures import MOST_LOGGED
from reactor.loop.log import LONGEST, describe, log, name_of
from reactor.net.addresses import show, unmapped
from tests.conftest import check_empty
from tests.helpers.support import kinds_of_handles, run_until

PACKAGE = Path(reactor.__file__).parent


class FoulError(Exception):
    """The exception that a `Foul` raises; reading its text raises, too."""

    def __repr__(self):
        raise RuntimeError('the repr of the exception')

    __str__ = __repr__

    def __bool__(self):
        raise RuntimeError('the truth of the exception')

    def __eq__(self, other):
        raise RuntimeError('a comparison of the exception')

    __hash__ = None


def _raising(what):
    def raising(self, *args):
        raise RuntimeError(what)

    return raising


class Foul:
    """A callable whose attributes and special methods all raise."""

    def __init__(self, error=FoulError):
        object.__setattr__(self, 'calls', [])
        object.__setattr__(self, 'error', error)

    def __call__(self, *args):
        calls_of(self).append(args)
        error = object.__getattribute__(self, 'error')
        if error is not None:
            raise error

    __repr__ = __str__ = __bool__ = __hash__ = __eq__ = __len__ = _raising('the repr, truth or hash of the callback')
    __getattribute__ = _raising('an attribute of the callback')


def calls_of(foul):
    """Return the arguments of each call to a `Foul`."""
    return object.__getattribute__(foul, 'calls')


class Endless:
    """A callable that, like a mock or a proxy, has every attribute; each attribute is another `Endless`."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        raise FoulError

    def __getattr__(self, name):
        return self


# -- broken loggers


class Raising(logging.Handler):
    """A log handler that raises, like a carelessly written one."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def emit(self, record):
        record.getMessage()
        raise self.error


class RaisingFilter(logging.Filter):
    """A filter that raises before the handler is called."""

    def filter(self, record):
        raise RuntimeError('the filter')


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


# For each kind of logger: the error that its handler raises, and the state of standard error, which is the fallback.
LOGGERS = {
    'works': (None, 'open'),
    'handler raises': (RuntimeError('the handler'), 'open'),
    'handler finds its disk full': (OSError(errno.ENOSPC, 'the handler'), 'open'),
    'handler finds no memory': (MemoryError(), 'open'),
    'handler recurses': (RecursionError(), 'open'),
    'filter raises': (RuntimeError, 'open'),
    'standard error is closed': (RuntimeError('the handler'), 'closed'),
    'no standard error': (RuntimeError('the handler'), 'none'),
    'everything fails': (FoulError(), 'closed'),
}


@contextlib.contextmanager
def logger_that(does):
    """Make the logger `reactor` fail in the given way.

    Tests enter this context themselves, because pytest sets up its capturing again after the fixtures have run.
    """
    error, stderr = LOGGERS[does]
    handler = logging.NullHandler() if error is None else Raising(error)
    if does == 'filter raises':
        handler.addFilter(RaisingFilter())
    found = logging.getLogger('reactor')
    found.addHandler(handler)
    found.propagate = False
    before = sys.stderr
    sys.stderr = {'open': before, 'closed': closed_stream(), 'none': None}[stderr]
    try:
        yield
    finally:
        sys.stderr = before
        found.propagate = True
        found.removeHandler(handler)


@pytest.fixture(params=list(LOGGERS))
def logger(request):
    """A context manager in which the test runs with one kind of broken logger."""
    return logger_that(request.param)


# -- the callbacks: one for every parameter that takes a callback


def pair():
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


def stream(name, begin=lambda conn, theirs: theirs.send(b'x')):
    def way(r, fn, keep):
        ours, theirs = pair()
        keep.append(theirs)
        conn = r.adopt(ours, **{name: fn})
        keep.append(conn)
        begin(conn, theirs)

    return way


def overflow(conn, theirs):
    while conn.write(bytes(1 << 20)):
        pass
    conn.loop.call_later(0.01, drain_slowly, conn, theirs)


def drain_slowly(conn, theirs):
    try:
        while theirs.recv(1 << 20):
            pass
    except BlockingIOError:
        if not conn.closed:
            conn.loop.call_later(0.01, drain_slowly, conn, theirs)
    except ValueError:
        pass


def listening(name, callbacks=(), **options):
    def way(r, fn, keep):
        server = r.listen_tcp('127.0.0.1', 0, **{name: fn}, **options)
        keep.append(server)
        keep.append(socket.create_connection(server.address))
        keep[-1].send(b'x')

    return way


def refusing(r, fn, keep):
    server = r.listen_tcp('127.0.0.1', 0, limits=Limits(refuse=fn))
    keep.append(server)
    keep.append(socket.create_connection(server.address))


def accept_error(r, fn, keep):
    server = r.listen_tcp('127.0.0.1', 0, on_accept_error=fn)
    keep.append(server)
    server.sock.shutdown(socket.SHUT_RDWR)


def connecting(name):
    def way(r, fn, keep):
        listener = socket.create_server(('127.0.0.1', 0))
        keep.append(listener)
        conn = r.connect_tcp(*listener.getsockname(), **{name: fn})
        keep.append(conn)
        if name == 'on_close':
            conn.close()

    return way


def datagram(name):
    def way(r, fn, keep):
        sock = r.bind_udp('127.0.0.1', 0, **{name: fn})
        keep.append(sock)
        if name == 'on_close':
            sock.close()
        else:
            sock.send(b'x', sock.address)

    return way


def send_error(r, fn, keep):
    sock = r.connect_udp('127.0.0.1', 9, on_send_error=fn)
    keep.append(sock)
    sock.send(b'x')
    r.call_later(0.01, lambda: sock.closed or sock.send(b'x'))


def watching(r, fn, keep):
    ours, theirs = pair()
    keep += [theirs, r.watch_fd(ours, READ, fn), ours]
    theirs.send(b'x')


def spawning(r, fn, keep):
    keep.append(r.spawn([sys.executable, '-c', ''], on_exit=fn))


def file(r, fn, keep):
    ours, theirs = pair()
    keep += [theirs, r.adopt(ours), open(__file__, 'rb')]
    keep[-2].send_file(keep[-1], 0, None, fn)
    r.call_later(0.01, drain_slowly, keep[-2], theirs)


def signalling(r, fn, keep):
    keep.append(r.add_signal_handler(signal.SIGUSR1, fn))
    signal.raise_signal(signal.SIGUSR1)


def close_it(conn, theirs):
    conn.close()


WAYS = {
    'call_soon': lambda r, fn, keep: r.call_soon(fn),
    'call_soon_threadsafe': lambda r, fn, keep: r.call_soon_threadsafe(fn),
    'call_later': lambda r, fn, keep: r.call_later(0, fn),
    'call_at': lambda r, fn, keep: r.call_at(r.now, fn),
    'call_every': lambda r, fn, keep: keep.append(r.call_every(0.001, fn)),
    'a method': lambda r, fn, keep: r.call_soon(types.MethodType(fn, 1)),
    'a partial': lambda r, fn, keep: r.call_soon(functools.partial(functools.partial(fn, 1), 2)),
    'idle': lambda r, fn, keep: keep.append(r.idle(fn)),
    'notifier': lambda r, fn, keep: r.notifier(fn).trigger(),
    'a signal handler': signalling,
    'run_in_thread on_done': lambda r, fn, keep: r.run_in_thread(int, on_done=fn),
    'run_in_thread fn': lambda r, fn, keep: r.run_in_thread(fn),
    'resolve': lambda r, fn, keep: r.resolve('127.0.0.1', fn),
    'resolve by name': lambda r, fn, keep: r.resolve('localhost', fn),
    'watch_fd': watching,
    'spawn on_exit': spawning,
    'on_data': stream('on_data'),
    'on_eof': stream('on_eof', lambda conn, theirs: theirs.shutdown(socket.SHUT_WR)),
    'on_close': stream('on_close', close_it),
    'on_drain': stream('on_drain', overflow),
    'on_written': lambda r, fn, keep: stream('on_data', lambda conn, _: conn.write(b'x', fn))(r, None, keep),
    'on_written with a foul argument': lambda r, fn, keep: stream(
        'on_data', lambda conn, _: conn.write(b'x', fn, Foul())
    )(r, None, keep),
    'on_written of writelines': lambda r, fn, keep: stream(
        'on_data', lambda conn, _: conn.writelines([b'x', b'y'], fn)
    )(r, None, keep),
    'send_file': file,
    'on_connect of a listener': listening('on_connect'),
    'on_data of a listener': listening('on_data'),
    'on_data after a deferred accept': listening('on_data', defer_accept=True),
    'on_connect of a connector': connecting('on_connect'),
    'on_close of a connector': connecting('on_close'),
    'on_accept_error': accept_error,
    'refuse': refusing,
    'on_datagram': datagram('on_datagram'),
    'on_close of a datagram socket': datagram('on_close'),
    'on_send_error': send_error,
}


class Kept(list):
    """Objects that one of the WAYS has left open; they are closed at the end."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for each in self:
            getattr(each, 'cancel', getattr(each, 'close', None))()


@pytest.mark.parametrize('logger', ['works', 'everything fails'], indirect=True)
@pytest.mark.parametrize('slow', [None, 1e-9], ids=['', 'every callback is slow'])
@pytest.mark.parametrize('way', list(WAYS))
def test_a_callback_that_raises_an_unprintable_error_hurts_no_other_handle(way, slow, logger):
    with logger:
        serve_a_foul_callback(way, slow)


@pytest.mark.parametrize('way', ['call_soon', 'call_later', 'on_data', 'on_close', 'on_datagram', 'on_accept_error'])
def test_an_unprintable_error_hurts_no_other_handle_with_any_broken_logger(way, logger):
    with logger:
        serve_a_foul_callback(way, None)


def serve_a_foul_callback(way, slow):
    fn, done = Foul(), []
    with Reactor(slow_callback=slow) as r, Kept() as kept:
        WAYS[way](r, fn, kept)
        r.why_alive()
        run_until(r, lambda: calls_of(fn))
        r.call_soon(done.append, 'served')
        run_until(r, lambda: done)


@pytest.mark.parametrize('way', list(WAYS))
def test_the_attributes_of_a_callback_that_has_every_attribute_are_not_followed_for_ever(way):
    fn = Endless()
    with Reactor(slow_callback=1e-9) as r, Kept() as kept:
        WAYS[way](r, fn, kept)
        run_until(r, lambda: fn.calls)


@pytest.mark.parametrize('way', ['on_data', 'on_eof', 'on_drain', 'on_written', 'send_file'])
def test_the_connection_ends_once_with_the_exception_of_its_callback(way, logger):
    ends, fn = [], Foul()
    with logger, Reactor() as r, Kept() as kept:
        WAYS[way](r, fn, kept)
        conn = next(each for each in kept if isinstance(each, reactor.Stream))
        conn.on_close = lambda conn, exc: ends.append(type(exc))
        run_until(r, lambda: ends)
        r.run_once(0)
    assert ends == [FoulError]


@pytest.mark.parametrize('reporter', ['on_error', 'catch_errors'])
def test_on_error_and_catch_errors_may_raise_too(reporter, logger):
    ends, fn, foul = [], Foul(), Foul()
    with logger, Reactor(catch_errors=foul if reporter == 'catch_errors' else True) as r, Kept() as kept:
        WAYS['on_data'](r, fn, kept)
        conn = kept[-1]
        conn.on_error = foul if reporter == 'on_error' else None
        conn.on_close = lambda conn, exc: ends.append(type(exc))
        run_until(r, lambda: ends)
    assert len(calls_of(foul)) == 1
    assert ends == [FoulError]


# -- an interrupt during a report


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('reporter', ['handler', 'catch_errors'])
def test_an_interrupt_from_the_logger_leaves_run_and_loses_nothing(reporter, error):
    handler = Raising(error())
    found = logging.getLogger('reactor')
    found.addHandler(handler)
    ends, data = [], []
    try:
        with Reactor(catch_errors=handler.emit if reporter == 'catch_errors' else True) as r:
            conns = []
            for number in range(3):
                ours, theirs = pair()
                conn = r.adopt(ours, on_data=lambda conn, got: data.append(conn.data) or 1 // 0)
                conn.on_close = lambda conn, exc: ends.append((conn.data, type(exc)))
                conn.data = number
                theirs.send(b'x')
                conns.append(theirs)
            if reporter == 'catch_errors':
                r.failures.catch_errors = lambda exc, handle: (_ for _ in ()).throw(error())
            for _ in range(9):
                try:
                    r.run_once(0)
                except error:
                    pass
            assert sorted(data) == [0, 1, 2]
            assert sorted(ends) == [(0, ZeroDivisionError), (1, ZeroDivisionError), (2, ZeroDivisionError)]
            for theirs in conns:
                theirs.close()
            check_empty(r)
    finally:
        found.removeHandler(handler)


# -- text in a message


class Hostile(socket.socket):
    """A socket from another library; its methods `getpeername` and `getsockname` raise."""

    def getpeername(self):
        raise RuntimeError('getpeername')

    getsockname = getpeername


def test_a_socket_without_addresses_works_and_is_shown_as_unknown():
    ours, theirs = pair()
    hostile = Hostile(fileno=ours.detach())
    ends = []
    with Reactor() as r:
        conn = r.adopt(hostile, on_close=lambda conn, exc: ends.append(exc), idle_timeout=0.01)
        assert (conn.peername, conn.sockname) == (None, None)
        assert 'unknown' in repr(conn)
        run_until(r, lambda: ends)
    theirs.close()
    assert isinstance(ends[0], reactor.IdleTimeout)


def test_any_address_is_shown_in_one_line():
    weird = [
        ('127.0.0.1', 1), ('fe80::1%\x1b[2J', 1, 0, 0), (3, 1024), (), ('x',), ((), ()), 7, object(), Foul(), b'\n',
        '\n', b'\0\n', '\udcff', 'a' * 10_000, (Foul(), Foul()), ('a\nb', 1),
    ]  # fmt: skip
    for address in weird:
        text = show(address)
        assert text.isprintable() and len(text) < 2 * LONGEST, address
        unmapped(address)


def test_a_vsock_or_netlink_address_is_shown():
    assert show((3, 1024)) == '(3, 1024)'
    assert unmapped((1, 2, 3, 4)) == (1, 2, 3, 4)


def test_any_object_can_be_described():
    assert describe('text') == 'text'
    assert describe(ValueError('why')) == 'why'
    assert describe([1]) == '[1]'
    assert describe(b'x') == "b'x'"
    assert describe(Foul()).startswith(f'<{__name__}.Foul object')
    assert len(describe('x' * 10_000_000)) < LONGEST + 100
    assert describe(FoulError()).startswith(f'<{__name__}.FoulError object')


def test_any_callback_can_be_named():
    assert name_of(Foul()).startswith(f'<{__name__}.Foul object')
    assert name_of(functools.partial(Foul())).startswith(f'<{__name__}.Foul object')
    assert isinstance(name_of(Endless()), str)
    assert name_of(functools.partial(len)) == 'builtins.len'


def test_a_line_that_cannot_be_logged_goes_to_standard_error_with_the_reason(monkeypatch, capsys):
    found = logging.getLogger('reactor')
    handler = Raising(RuntimeError('no way'))
    found.addHandler(handler)
    try:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as exc:
            log('error', 'exception in %s after %g s', Foul(), 1.5, exc=exc)
    finally:
        found.removeHandler(handler)
    text = capsys.readouterr().err
    assert 'exception in <' in text and 'after 1.5 s (not logged: no way)' in text and 'ZeroDivisionError' in text


def test_an_exception_whose_truth_value_raises_is_logged_with_its_traceback(caplog):
    try:
        raise FoulError
    except FoulError as exc:
        log('error', 'something', exc=exc)
        assert caplog.records[0].exc_info[1] is exc


def test_without_standard_error_nothing_is_written_to_standard_output(monkeypatch, capsys):
    found = logging.getLogger('reactor')
    handler = Raising(RuntimeError('no way'))
    found.addHandler(handler)
    monkeypatch.setattr(sys, 'stderr', None)
    try:
        log('error', 'something')
    finally:
        found.removeHandler(handler)
    assert capsys.readouterr().out == ''


# -- all handles, all lines


def test_every_kind_of_handle_is_shown_open_and_closed_with_foul_callbacks(tmp_path):
    """The handles are shown in `handles()`, in `why_alive()` and on a control socket."""
    from reactor.net.tls import TLSStream
    from reactor.observe.commands import Commands

    shown = set()
    with Reactor(debug=True) as r, Kept() as kept:
        commands = Commands(r, dict, lambda *args: None)
        ours, theirs = pair()
        kept += [ours, theirs]
        foul = Foul(error=None)
        server = r.listen_tcp('127.0.0.1', 0, foul, on_accept_error=foul, limits=Limits(refuse=foul))
        opened = [
            server,
            r.listen_unix(str(tmp_path / 's'), foul, proxy_protocol=True),
            r.connect_tcp('127.0.0.1', server.address[1], foul),
            r.connect_tcp('nobody.invalid', 1, foul),
            r.watch_fd(ours, READ | WRITE, foul, foul),
            r.idle(foul, foul),
            r.notifier(foul, foul),
            r.add_signal_handler(signal.SIGUSR1, foul, foul),
            r.run_in_thread(foul, foul, on_done=foul),
            r.resolve('localhost', foul),
            r.bind_udp('127.0.0.1', 0, foul),
            r.spawn([sys.executable, '-c', 'input()'], on_exit=foul, stdin=reactor.PIPE, stdout=reactor.PIPE),
        ]
        opened += [opened[-1].stdin, opened[-1].stdout]
        r.call_soon(foul)
        r.call_later(60, foul)
        handles = {*r.handles(), *opened}
        for handle in handles:
            shown.add(type(handle))
            assert isinstance(repr(handle), str) and isinstance(handle.waits_for(), str)
        assert any('Foul object' in line for line in r.why_alive())
        assert b'"ok": true' in commands.answer(b'handles')
        assert b'"ok": true' in commands.answer(b'why_alive')
        for handle in handles:
            handle.abort()
        for handle in handles:
            assert isinstance(repr(handle), str)
    missing = {kind.__name__ for kind in kinds_of_handles()} - {
        base.__name__ for kind in shown for base in kind.__mro__
    }
    # Only handles that are never passed to users, and handles that inherit their repr, may be missing.
    assert missing <= {
        'Wakeup', 'TLSStream', 'CheckedTLSStream', 'WatchedPath', 'Stream', 'CheckedStream', 'ControlSocket',
    } | {kind.__name__ for kind in kinds_of_handles() if '__repr__' not in vars(kind)}, missing  # fmt: skip
    assert TLSStream.__repr__ is reactor.Stream.__repr__


def calls_of_log():
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'log':
                yield path.relative_to(PACKAGE).as_posix(), node


def test_arguments_of_the_log_are_turned_into_text_by_the_log():
    """No caller of `log` formats objects whose repr may raise, or puts quotes around text that `log` has made."""
    found = list(calls_of_log())
    assert len(found) >= 15
    for path, node in found:
        message, arguments = node.args[1], node.args[2:]
        assert isinstance(message, ast.Constant) and '%r' not in message.value, (path, node.lineno)
        for argument in arguments:
            assert not any(isinstance(part, ast.FormattedValue) for part in ast.walk(argument)), (path, node.lineno)


def test_only_the_log_module_writes_log_lines():
    """Modules whose commands print to the terminal are not checked. The hook that `serve/logs.py` sets calls `log`."""
    allowed = {'__main__', 'log', 'logs', 'top'}
    for path in sorted(PACKAGE.rglob('*.py')):
        if path.stem in allowed or {'testing', 'demo'} & {*path.parts}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ('excepthook', '__excepthook__', 'getLogger'):
                raise AssertionError(f'{path}:{node.lineno} reports without the log module')
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print':
                raise AssertionError(f'{path}:{node.lineno} prints')


def test_the_number_of_errors_whose_last_report_is_remembered_is_bounded(fake):
    assert all(fake.failures.is_news(('place', number)) for number in range(MOST_LOGGED))
    assert not fake.failures.is_news(('place', 0)), 'it was reported less than a second ago'
    assert fake.failures.is_news('one more')
    assert fake.failures.is_news(('place', 0)), 'all were forgotten'
