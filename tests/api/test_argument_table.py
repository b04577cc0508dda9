"""Tests of the arguments and states of the public API, with tables that are built by reflection.

Every parameter of every public method gets every value from a list of wrong and strange values, one at a time, while
the other arguments are valid. Either the call works, or it immediately raises an exception that the design allows:
TypeError, ValueError, OSError or an error of the reactor. The message names the parameter or the value. A refused call
leaves nothing open. The result of an accepted call is used for several turns, in which nothing may fail.

Every public method is also called in every state of its object, and may raise only the exceptions that its docstring
names.

A new method or parameter is included automatically. If it needs an entry in a table, a test fails until the entry is
added.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import inspect
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest

from reactor import DEVNULL, PIPE, READ, Limits, Process, Reactor, Stream, errors
from reactor.kernel import Kernel
from reactor.kernel.calls import ResolveFailure
from reactor.loop.checks import shown
from reactor.loop.descriptor import Descriptor
from reactor.loop.idle import Idler
from reactor.loop.notifier import Notifier
from reactor.loop.signals import SignalHandler
from reactor.loop.threads import ThreadCall
from reactor.loop.timers import Timer
from reactor.net.datagram import DatagramSocket
from reactor.net.listener import Listener
from reactor.net.options import Options
from reactor.net.resolver import LookUp
from reactor.system.pipe import DuplexPipe, ReadPipe, WritePipe
from tests.conftest import open_descriptors
from tests.helpers.support import INTERNAL, options_of

HERE = '127.0.0.1'
ALLOWED = (errors.ReactorError, TypeError, ValueError, OSError)
# Python's own messages about values of the wrong type. They describe the code of the function, not the user's argument.
LEAKS = re.compile(
    r'not supported between instances|object has no attribute|object is not (iterable|callable|subscript)'
)


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False


class NumericKernel(Kernel):
    """The real kernel, except that it does not look up names, because the queries would leave the machine."""

    def getaddrinfo(self, host: Any, port: Any, family: int, kind: int, flags: int = 0) -> list[Any]:
        return super().getaddrinfo(host, port, family, kind, flags | socket.AI_NUMERICHOST)

    def getnameinfo(self, address: Any, flags: int) -> Any:
        raise ResolveFailure('no name is looked up here')


class World:
    """A reactor and sockets, which are all closed at the end of the `with` block."""

    def __init__(self, folder: Any, debug: bool = False) -> None:
        self.folder = folder
        self.failures: list[Exception] = []
        self.r = Reactor(
            kernel=NumericKernel(), catch_errors=lambda exc, handle: self.failures.append(exc), debug=debug
        )
        self.sockets: list[socket.socket] = []
        self.peers: dict[Any, socket.socket] = {}

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.r.close()
        for sock in self.sockets:
            sock.close()

    def track(self, sock: Any) -> Any:
        sock.setblocking(False)
        self.sockets.append(sock)
        return sock

    def pair(self) -> tuple[Any, Any]:
        ours, theirs = socket.socketpair()
        self.peers[ours.fileno()] = theirs
        return self.track(ours), self.track(theirs)

    def listening(self) -> Any:
        sock = self.bound()
        sock.listen()
        return sock

    def bound(self, kind: int = socket.SOCK_STREAM) -> Any:
        sock = self.track(socket.socket(socket.AF_INET, kind))
        sock.bind((HERE, 0))
        return sock

    def closed(self) -> Any:
        sock = socket.socket()
        sock.close()
        return sock

    def secured(self) -> Any:
        ours, _ = self.pair()
        wrapped = CONTEXT.wrap_socket(ours, do_handshake_on_connect=False)
        self.sockets.append(wrapped)
        return wrapped

    def file(self) -> Any:
        path = self.folder / 'file'
        path.write_bytes(b'x' * 10000)
        return self.track_file(path.open('rb'))

    def terminal(self) -> Any:
        """Return the master of a terminal, as a file."""
        master, slave = os.openpty()
        self.track_file(os.fdopen(slave, 'rb+', buffering=0))
        return self.track_file(os.fdopen(master, 'rb+', buffering=0))

    def track_file(self, file: Any) -> Any:
        self.sockets.append(file)
        return file

    def turns(self, count: int = 4) -> None:
        for _ in range(count):
            self.r.run_once(0)

    # -- objects

    def stream(self, **options: Any) -> Any:
        conn = self.r.adopt(self.pair()[0], **options)
        return conn

    def connection(self, **options: Any) -> Any:
        conn = self.r.connect_tcp(*self.listening().getsockname(), **options)
        return conn

    def child(self, **options: Any) -> Process:
        return self.r.spawn(['cat'], **options)


def nothing(*args: Any) -> None:
    """A callback that does nothing."""


VALUES: dict[str, Callable[[World], Any]] = {
    **{
        repr(value): lambda world, value=value: value
        for value in (0, -1, 1, True, False, 1.5, '1', '', '\0', 'é' * 70, b'', b'1', None, (), [], {}, 1j)
    },
    'NaN': lambda world: float('nan'),
    'infinity': lambda world: float('inf'),
    '1e300': lambda world: 1e300,
    '2**31': lambda world: 2**31,
    '2**64': lambda world: 2**64,
    '10**400': lambda world: 10**400,
    'an object': lambda world: object(),
    'a pair of objects': lambda world: (object(), object()),
    'a pair of numbers': lambda world: (1, 1),
    'a list of objects': lambda world: [object()],
    'a closed socket': World.closed,
    'a datagram socket': lambda world: world.bound(socket.SOCK_DGRAM),
    'a listening socket': World.listening,
    'a connected socket': lambda world: world.pair()[0],
    'an SSL socket': World.secured,
}

OBJECTS: dict[type, Callable[[World], Any]] = {
    Reactor: lambda world: world.r,
    Stream: World.stream,
    Listener: lambda world: world.r.listen_tcp(HERE, 0),
    Timer: lambda world: world.r.call_later(60, nothing),
    DatagramSocket: lambda world: world.r.bind_udp(HERE, 0),
    Process: World.child,
    ReadPipe: lambda world: world.child(stdout=PIPE).stdout,
    WritePipe: lambda world: world.child(stdin=PIPE).stdin,
    DuplexPipe: lambda world: world.r.open_fd(world.terminal()),
    Descriptor: lambda world: world.r.watch_fd(world.pair()[0], READ, nothing),
    Notifier: lambda world: world.r.notifier(nothing),
    Idler: lambda world: world.r.idle(nothing),
    SignalHandler: lambda world: world.r.add_signal_handler(signal.SIGUSR1, nothing),
    ThreadCall: lambda world: world.r.run_in_thread(nothing),
    LookUp: lambda world: world.r.resolve_address(HERE, nothing),
}

CALLBACKS = dict.fromkeys(('on_data', 'on_connect', 'on_eof', 'on_drain', 'on_close'), nothing)
DATAGRAMS = dict.fromkeys(('on_datagram', 'on_send_error', 'on_drain', 'on_close'), nothing)
FN = {'fn': nothing}

# Valid arguments for each method. A parameter is left out if its default is good enough.
ARGUMENTS: dict[str, Callable[[World], dict[str, Any]]] = {
    'Reactor.listen_tcp': lambda world: {'host': HERE, 'port': 0, **CALLBACKS},
    'Reactor.listen_unix': lambda world: {'path': str(world.folder / 'listening'), **CALLBACKS},
    'Reactor.connect_tcp': lambda world: dict(zip(('host', 'port'), world.listening().getsockname(), strict=True)),
    'Reactor.connect_unix': lambda world: {'path': str(world.folder / 'no-listener')},
    'Reactor.adopt': lambda world: {'sock': world.pair()[0]},
    'Reactor.open_fd': lambda world: {'fd': world.terminal()},
    'Reactor.bind_udp': lambda world: {'host': HERE, 'port': 0, **DATAGRAMS},
    'Reactor.connect_udp': lambda world: {'host': HERE, 'port': 9, **DATAGRAMS},
    'Reactor.resolve': lambda world: {'host': HERE, 'on_done': nothing},
    'Reactor.resolve_address': lambda world: {'address': HERE, 'on_done': nothing},
    'Reactor.spawn': lambda world: {'args': ['true'], 'stdin': DEVNULL, 'stdout': DEVNULL},
    'Reactor.watch_path': lambda world: {'path': str(world.folder), 'fn': nothing},
    'Reactor.drain': lambda world: {'timeout': 1, 'lame_duck': 0},
    'Reactor.run': lambda world: {'main': nothing},
    'Reactor.add_drain_callback': lambda world: FN,
    'Reactor.add_exit_callback': lambda world: FN,
    'Reactor.call_soon': lambda world: FN,
    'Reactor.call_soon_threadsafe': lambda world: FN,
    'Reactor.call_later': lambda world: {'delay': 60, **FN},
    'Reactor.call_at': lambda world: {'deadline': world.r.now + 60, **FN},
    'Reactor.call_every': lambda world: {'interval': 60, **FN},
    'Reactor.add_signal_handler': lambda world: {'signum': signal.SIGUSR1, **FN},
    'Reactor.remove_signal_handler': lambda world: {'signum': signal.SIGUSR1},
    'Reactor.run_in_thread': lambda world: {**FN, 'on_done': nothing},
    'Reactor.watch_fd': lambda world: {'fd': world.pair()[0], 'events': READ, **FN},
    'Reactor.idle': lambda world: FN,
    'Reactor.notifier': lambda world: FN,
    'Stream.write': lambda world: {'data': b'x', 'on_written': nothing},
    'Stream.writelines': lambda world: {'buffers': [b'x'], 'on_written': nothing},
    'Stream.send_file': lambda world: {'file': world.file(), 'on_written': nothing},
    'Stream.start_tls': lambda world: {'context': CONTEXT, 'server_hostname': 'localhost'},
    'DatagramSocket.send': lambda world: {'data': b'x', 'address': world.bound(socket.SOCK_DGRAM).getsockname()},
    'DatagramSocket.join_group': lambda world: {'group': '239.1.2.3', 'interface': HERE},
    'DatagramSocket.leave_group': lambda world: {'group': '239.1.2.3', 'interface': HERE},
    'Process.send_signal': lambda world: {'signum': signal.SIGCONT},
    'Descriptor.set_events': lambda world: {'events': READ},
}
MADE = {'Reactor': Reactor, 'Options': Options, 'Limits': Limits}
# Values that are not tested.
LEFT_OUT = {
    ('Reactor.listen_tcp', 'host', 'None'),  # this would listen on all addresses of this machine
    ('Reactor.bind_udp', 'host', 'None'),
    ('Reactor.open_fd', 'fd', '0'),  # this would take the standard input and output of the tests
    ('Reactor.open_fd', 'fd', '1'),
    # The context is a client's, so the message rightly names the context and not `server_side`.
    ('Stream.start_tls', 'server_side', '1'),
    ('Stream.start_tls', 'server_side', 'True'),
    # The message asks for `server_hostname`, which this context needs.
    ('Reactor.connect_unix', 'ssl', 'True'),
}


def methods_of(kind: type) -> list[str]:
    """Return the names of the public methods of a class."""
    return [
        name
        for name, value in inspect.getmembers(kind)
        if callable(value) and not name.startswith(('_', 'handle_')) and name not in INTERNAL
    ]


def properties_of(kind: type) -> list[str]:
    return [
        name for name, value in inspect.getmembers(kind) if isinstance(value, property) and not name.startswith('_')
    ]


def arguments_of(kind: type, method: str, world: World) -> dict[str, Any]:
    for base in kind.__mro__:
        found = ARGUMENTS.get(f'{base.__name__}.{method}')
        if found is not None:
            return found(world)
    return {}


def refuses_every_call(call: Any) -> bool:
    return set(inspect.signature(call).parameters) == {'self', 'args', 'options'}


def parameters_of(call: Any) -> list[str]:
    """Return the names of all parameters, including those in the TypedDict for `**options`."""
    names: list[str] = []
    if refuses_every_call(call):
        return []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += [name for name in options_of(call) if name not in names]
        elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name != 'self':
            names.append(parameter.name)
    return names


TABLE = [
    *((kind.__name__, method, name) for kind in OBJECTS for method in methods_of(kind)
      for name in parameters_of(getattr(kind, method))),
    *((name, '', parameter) for name, kind in MADE.items() for parameter in parameters_of(kind.__init__)
),
    ('Listener', 'max_connections', '='),
    ('Stream', 'busy', '='),
]  # fmt: skip
KINDS = {kind.__name__: kind for kind in OBJECTS}


def prepared(world: World, kind: str, method: str, name: str, value: Any) -> Callable[[], Any]:
    """Return a function that makes the call with one strange value."""
    if not method:
        return lambda: MADE[kind](**{name: value})
    target = OBJECTS[KINDS[kind]](world)
    if name == '=':
        return lambda: setattr(target, method, value)
    arguments = {**arguments_of(KINDS[kind], method, world), name: value}
    return lambda: getattr(target, method)(**arguments)


def use(world: World, made: Any) -> None:
    """Use the result of a call, so that a bad option that was accepted causes an error."""
    if isinstance(made, Reactor) and made is not world.r:
        made.close()
    world.turns()
    if type(made) is Stream:
        peer = world.peers.get(made.fileno())
        if peer is not None:
            peer.send(b'x')
        if not made.closed:
            made.write(b'x')
        world.turns()
        made.close()
    if isinstance(made, Listener) and not made.closed:
        with socket.socket(made.sock.family) as client:
            client.setblocking(False)
            client.connect_ex(made.sock.getsockname())
            world.turns()
            with contextlib.suppress(OSError):  # the listener may have refused the client
                client.send(b'x')
            world.turns()
    world.turns()


def left(world: World) -> tuple[int, int, int, int]:
    """Count the handles, timers, completions and descriptors that exist."""
    return len(world.r.handles()), len(world.r.timers), len(world.r.completions), open_descriptors()


def judge(exc: BaseException, method: str, name: str, value: Any) -> str:
    """Describe what is wrong with the exception that a call raised; '' if it is allowed and its message is clear."""
    text = f'{type(exc).__name__}: {exc}'
    if not isinstance(exc, ALLOWED):
        return f'raises {text}'
    if LEAKS.search(text):
        return f'leaks {text}'
    if isinstance(exc, TypeError | ValueError) and not isinstance(exc, errors.ReactorError):
        parts = value if isinstance(value, tuple | list) else ()
        named = (name.strip('=') or method, shown(value), *(shown(part) for part in parts))
        if not any(word.replace('_', ' ') in text.replace('_', ' ') for word in named if word):
            return f'names neither the argument nor the value: {text}'
    return ''


def trouble(kind: str, method: str, name: str, make: Any, folder: Any) -> str:
    """Describe what goes wrong with one value of one parameter; return '' if nothing goes wrong."""
    with World(folder) as world:
        value = make(world)
        call = prepared(world, kind, method, name, value)
        before, made, wrong, refused = left(world), None, '', False
        try:
            made = call()
        except BaseException as exc:
            refused, wrong = True, judge(exc, method, name, value)
        if refused and not wrong and left(world) != before:
            gc.collect()
            if left(world) != before:
                wrong = f'was refused and left something behind: {before} before, {left(world)} after'
        try:
            use(world, made)
        except BaseException as exc:
            wrong = wrong or f'leaves the loop with {exc!r}'
        if world.failures:
            wrong = wrong or f'fails later: {world.failures[0]!r}'
        return wrong


@pytest.mark.filterwarnings('ignore:call_at:RuntimeWarning')  # a deadline many years ahead works, with a warning
@pytest.mark.parametrize(('kind', 'method', 'name'), TABLE, ids=lambda value: value or 'init')
def test_a_strange_value_works_or_is_refused_at_the_call_and_leaves_nothing(kind, method, name, tmp_path):
    wrong = []
    for label, make in VALUES.items():
        if (f'{kind}.{method}', name, label) not in LEFT_OUT:
            found = trouble(kind, method, name, make, tmp_path)
            if found:
                wrong.append(f'{kind}.{method}({name}={label}) {found}')
    assert not wrong, '\n'.join(wrong)


# -- states


def turned(world: World, made: Any) -> Any:
    world.turns()
    return made


def half_open(world: World) -> Any:
    conn = world.stream(on_eof=nothing)
    world.peers[conn.fileno()].shutdown(socket.SHUT_WR)
    return turned(world, conn)


def full(world: World, **options: Any) -> Any:
    """A connection with queued bytes: its peer reads nothing."""
    conn = world.stream(**options)
    conn.write(bytes(4 << 20))
    return conn


def failed(world: World) -> Any:
    """A connection on which a write has failed, but no callback has been called yet."""
    conn = world.stream()
    world.peers[conn.fileno()].close()
    conn.write(b'x')
    return conn


def after(do: Callable[[Any], Any], make: Callable[[World], Any]) -> Callable[[World], Any]:
    """Return a function that makes an object and then calls `do` with it, before the loop calls `on_close`."""

    def made(world: World) -> Any:
        made = make(world)
        do(made)
        return made

    return made


def with_reactor_closed(make: Callable[[World], Any]) -> Callable[[World], Any]:
    def made(world: World) -> Any:
        made = make(world)
        world.r.close()
        return made

    return made


def close(handle: Any) -> None:
    (handle.cancel if isinstance(handle, Timer) else handle.close)()


def secured(world: World) -> Any:
    """A connection in the middle of its TLS handshake."""
    conn = world.stream()
    conn.start_tls(CONTEXT, server_hostname='localhost')
    return conn


def broken_tls(world: World) -> Any:
    """A connection whose TLS handshake failed because the peer does not speak TLS."""
    conn = secured(world)
    world.peers[conn.fileno()].send(b'this is not TLS\r\n' * 10)
    return turned(world, conn)


def cut_tls(world: World) -> Any:
    """A connection whose peer closed it in the middle of the handshake."""
    conn = secured(world)
    world.peers[conn.fileno()].close()
    return turned(world, conn)


STATES: dict[str, Callable[[World], Any]] = {
    'connecting': World.connection,
    'connected, not reported yet': World.connection,
    'connecting, with bytes': after(lambda conn: conn.write(b'x'), World.connection),
    'connecting, closed': after(lambda conn: conn.close(), World.connection),
    'connecting, aborted': after(lambda conn: conn.abort(), World.connection),
    'open': World.stream,
    'open after turns': lambda world: turned(world, world.stream()),
    'paused': after(lambda conn: conn.pause_reading(), World.stream),
    'full': full,
    'full, ended': after(lambda conn: conn.write_eof(), full),
    'half open': half_open,
    'half open, ended': after(lambda conn: conn.write_eof(), half_open),
    'ended': after(lambda conn: conn.write_eof(), World.stream),
    'closing': after(lambda conn: conn.close(), full),
    'closed': after(lambda conn: conn.close(), World.stream),
    'closed and reported': lambda world: turned(world, after(lambda conn: conn.close(), World.stream)(world)),
    'aborted': after(lambda conn: conn.abort(), full),
    'failed': failed,
    'failed and reported': lambda world: turned(world, failed(world)),
    'handshake': secured,
    'handshake, with bytes': after(lambda conn: conn.write(b'x'), secured),
    'handshake, closed': after(lambda conn: conn.close(), secured),
    'handshake, failed': broken_tls,
    'handshake, cut': cut_tls,
}
ROWS: list[tuple[type, str, Callable[[World], Any]]] = [
    *((Stream, state, make) for state, make in STATES.items()),
    *((Stream, f'{state}, reactor closed', with_reactor_closed(make)) for state, make in STATES.items()),
]
for kind, make in OBJECTS.items():
    if kind is not Stream:
        ROWS.append((kind, 'open', make))
        ROWS.append((kind, 'open after turns', lambda world, make=make: turned(world, make(world))))
        ROWS.append((kind, 'closed', after(close, make)))
        ROWS.append((kind, 'reactor closed', with_reactor_closed(make)))
        if kind is not Reactor:
            ROWS.append((kind, 'closed after turns', lambda world, make=make: turned(world, after(close, make)(world))))


def named(kind: type, method: str) -> tuple[type[BaseException], ...]:
    """Return the exceptions named in the docstrings of a method, of its class, and of methods that they refer to."""
    texts, seen = [inspect.getdoc(base) or '' for base in kind.__mro__], {method}
    waiting = [method]
    while waiting:
        text = inspect.getdoc(getattr(kind, waiting.pop(), None)) or ''
        texts.append(text)
        for other in re.findall(r'[Aa]s (?:does )?`(?:\w+\.)?(\w+)`', text):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    found = {word for text in texts for word in re.findall(r'\b[A-Z][A-Za-z]+\b', text)}
    kinds = [getattr(errors, word, None) or getattr(builtins, word, None) for word in found]
    return tuple(each for each in kinds if isinstance(each, type) and issubclass(each, BaseException))


@pytest.mark.parametrize(('kind', 'state', 'make'), ROWS, ids=[f'{row[0].__name__}-{row[1]}' for row in ROWS])
def test_in_every_state_a_method_raises_only_what_its_docstring_names(kind, state, make, tmp_path):
    wrong = []
    for name in [*methods_of(kind), *properties_of(kind)]:
        with World(tmp_path) as world:
            target = make(world)
            before = len(world.failures)
            try:
                if name in methods_of(kind):
                    arguments = arguments_of(kind, name, world)
                    getattr(target, name)(**arguments)
                else:
                    getattr(target, name)
            except BaseException as exc:
                if not isinstance(exc, named(kind, name)):
                    wrong.append(f'{name} of a {kind.__name__} ({state}) raises {exc!r}')
            if not world.r.guard.closed:
                world.turns()
            wrong += [f'{name} of a {kind.__name__} ({state}) fails later: {exc!r}' for exc in world.failures[before:]]
    assert not wrong, '\n'.join(wrong)


# Methods that any thread may call. Some are made for other threads; the rest only read, so their results may be out of
# date.
FROM_ANY_THREAD = {'call_soon_threadsafe', 'trigger', 'fileno', 'handles', 'stats', 'timeout', 'why_alive'}


def result_in_thread(world: World, call: Callable[[], object]) -> object:
    """Run `call` in another thread while the loop runs; return its result or its exception."""
    found: list[object] = []

    def caught() -> None:
        try:
            found.append(call())
        except Exception as exc:
            found.append(exc)

    def call_in_thread() -> None:
        thread = threading.Thread(target=caught)
        thread.start()
        thread.join()

    world.r.call_soon(call_in_thread)
    world.turns()
    return found[0]


def refused(result: object) -> bool:
    return isinstance(result, errors.ReactorError) and 'thread' in str(result)


@pytest.mark.parametrize(
    ('kind', 'method'),
    [
        (kind, method)
        for kind in OBJECTS
        for method in methods_of(kind)
        if not refuses_every_call(getattr(kind, method))
    ],
    ids=lambda value: getattr(value, '__name__', value),
)
def test_with_debug_each_call_from_another_thread_is_refused_except_those_made_for_threads(kind, method, tmp_path):
    with World(tmp_path, debug=True) as world:
        target, arguments = OBJECTS[kind](world), arguments_of(kind, method, world)
        result = result_in_thread(world, lambda: getattr(target, method)(**arguments))
    assert refused(result) != (method in FROM_ANY_THREAD), result


@pytest.mark.parametrize(
    ('kind', 'name'),
    [(kind, name) for kind in OBJECTS for name in properties_of(kind) if getattr(kind, name).fset is not None],
    ids=lambda value: getattr(value, '__name__', value),
)
def test_with_debug_setting_an_attribute_with_a_side_effect_is_refused_in_another_thread(kind, name, tmp_path):
    with World(tmp_path, debug=True) as world:
        target = OBJECTS[kind](world)
        result = result_in_thread(world, lambda: setattr(target, name, getattr(target, name)))
    assert refused(result), result
