"""The simulated operating system: `SimKernel(seed)` in place of `reactor.kernel.Kernel`.

Owns the clock, the descriptors, the events to come, and the network's addresses. Knows no reactor. The rules: time
passes in `select` alone; everything random is drawn from the seed, in the order of the calls, so the same program with
the same seed makes the same calls with the same outcomes. Files are those of `make_file`; processes are not simulated.
"""

from __future__ import annotations

import errno
import signal
from heapq import heappop, heappush
from ipaddress import ip_address
from random import Random
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AI_NUMERICHOST,
    EAI_AGAIN,
    EAI_NONAME,
    SO_REUSEADDR,
    SOCK_STREAM,
    gaierror,
)
from sys import _getframe

from ..kernel import ONLY_ERROR, Kernel, step_of_waits
from .faults import Faults
from .files import DEFERRED, SYN_RETRY, End, File, Listening, Mailbox, Stored, Unborn
from .poller import FD_SETSIZE, KINDS, MOST_SOCKETS, SimSelector
from .sockets import EXHAUSTED, SimSocket, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

MS = 1_000_000  # ns
START = 1_000_000 * MS  # the clock at the start
STDIO = 3  # descriptors that a program has from the start
UNIX_QUEUE = 10  # datagrams that wait at a Unix socket, as in net.unix.max_dgram_qlen
PLENTY = 1000  # descriptors, below what select can take
FOREIGN = 0.4  # of the seeds: a system that is not Linux
TICK = 15_625_000  # ns: the timer of Windows has 64 ticks a second
FIRST_HANDLE, HANDLE_STEP = 400, 4  # of Windows, whose sockets have such numbers
COARSE = 0.3  # of the seeds: time advances in steps
GRAINS = 0.005, 0.05  # seconds, the shortest and the longest step
# Calls whose failure is the end of a connection; what others say of it is not.
ENDING = {'recv', 'send', 'sendmsg', 'sendfile', 'getsockopt', 'register', 'modify'}
LOST = ('shutdown', errno.EBADF)
UNREAD = {'recv', 'register', 'modify'}  # what arrived before is not read then
# Calls that nobody needs to succeed. Who lost his descriptor there cannot know it, so its number is not given again: he
# would use what is another's, and nothing could prevent that.
UNHEARD = {'setsockopt', 'getsockname', 'getpeername'}
HOSTS: dict[str, tuple[str, ...]] = {
    'localhost': ('127.0.0.1',),
    'server.test': ('10.0.0.1',),
    'both.test': ('fd00::1', '10.0.0.1'),
}


class SimKernel(Kernel):
    """An operating system of its own, for `Reactor(kernel=...)`: nothing below it is real, and no time is spent.

    seed         of everything that is drawn: latencies, room in buffers, faults
    selector     'epoll', 'poll', 'select', 'kqueue' or 'windows': whose manners its selectors have, its sockets and its
                 clock. The last two are a BSD or macOS, and Windows; see there below. None: drawn
    faults       True: drawn from the seed; False: none; or names of `faults.SITES`, which then are on at their highest
    descriptors  how many may be open at once
    grain        seconds: time advances in steps of this, so that whatever falls into one step is ready in one turn:
                 connections, datagrams, timers, signals and threads together. 0: a turn for each event. None: drawn,
                 for COARSE of the seeds
    hosts        addresses of names for look-ups, beside 'localhost'
    fail         (n, error): the n-th call to the system fails with this error number; EBADF: somebody else closes its
                 descriptor right before. Not EINTR, after which Python itself calls again (PEP 475). The clock and
                 `unregister` never fail: the one has no errors, those of the other `selectors` hides
    lasting      with `fail`: None: the n-th call alone fails. 'kind': every later call of that kind fails too, on
                 descriptors of the same kind; 'descriptor': every later one on the same descriptor

    On kqueue and Windows, TCP_NODELAY is not inherited, a silent client is accepted at once whatever `defer_accept`
    says, and neither the bytes of a connection nor dropped datagrams are counted. On kqueue a full Unix socket refuses
    clients and datagrams (unix(4) of FreeBSD), `accept` may return no address, and options fail on a connection that
    is over.
    Windows has no Unix sockets and no SO_REUSEPORT, numbers sockets from 400 in steps of 4, says ENOTSOCK for EBADF and
    EWOULDBLOCK for EINPROGRESS, sends one buffer at a time, loses what was not read when a connection is reset, and
    makes the doorbell of a TCP connection (`socketpair` in CPython's Lib/socket.py). Its clock has steps of 15.6 ms, or
    its waits end that much too early, or both.

    `trace` lists what happened as (time in ns, what, descriptor, detail); `show_trace` renders it.
    """

    time: int
    replaced_in_vain: bool
    lost: int
    counts_tcp: bool
    nodelay_inherited: bool
    exclusive_address: int
    connecting: frozenset[int]
    clock_step: float

    def __init__(
        self,
        seed: int = 0,
        *,
        selector: str | None = None,
        faults: bool | tuple[str, ...] = True,
        descriptors: int = PLENTY,
        grain: float | None = None,
        hosts: Mapping[str, tuple[str, ...]] | None = None,
        fail: tuple[int, int] | None = None,
        lasting: str | None = None,
    ) -> None:
        if lasting not in (None, 'kind', 'descriptor'):
            raise ValueError(f"lasting is None, 'kind' or 'descriptor', not {lasting!r}")
        self.seed = seed
        self.random: Random = Random(seed)
        coins = Random(self.random.getrandbits(64))
        self.faults: Faults = Faults(coins, None if faults is True else faults or ())
        kind = self.random.choice(KINDS[:3])
        # Drawn apart from everything else, as others below are: so a seed that was one of the first three before there
        # were others is the same still, or becomes so with `selector`.
        manner = Random(f'manner {seed}')
        if manner.random() < FOREIGN:
            kind = manner.choice(KINDS[3:])
        self.kind: str = selector or kind
        self.on_linux: bool = self.kind in KINDS[:3]
        self.tick: int = MS  # of the timer that ends waits, on Windows
        self.clock_grain: int = 1  # ns, the steps of the clock
        self._take_manners(manner)
        self.time = self.woke_at = START  # now, and when the last poll returned
        self.files: dict[int, File] = {}
        self.trace: list[tuple[int, str, int, Any]] = []
        self.calls: int = 0
        self.progress: int = 0  # counts what a program can make of its calls
        self.threads: int = 0  # that have not ended
        self.reads: dict[File, int] = {}  # in this turn, of each file: bytes, datagrams, clients
        self.on_turn: Callable[[float | None], object] = _nothing
        self.wakeup_fd: int = -1
        self.owners: list[Any] = []  # type: ignore[misc]  # of this process alone
        self.handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        self.hosts: dict[str, tuple[str, ...]] = {**HOSTS, **(hosts or {})}
        self.silent: set[str] = set()  # hosts that never answer
        self.descriptors: int = descriptors
        if 'descriptors.few' in self.faults.on:
            self.descriptors = STDIO + self.random.randrange(4, 40)
        self.fails: bool = fail is not None
        self.loses: bool = fail is not None and fail[1] == errno.EBADF
        self.failed: str = ''  # the name of the call that was made to fail
        self._fail = fail
        self._lasting = lasting
        self._failing: tuple[str, Any] | None = None  # what fails from now on
        self._withheld = -1  # a number that is not given again
        self._events: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._numbers = 0
        self._thread = 1
        steps = Random(f'grain {seed}')
        drawn = steps.uniform(*GRAINS) if steps.random() < COARSE else 0.0
        self.grain: int = int(1e9 * (drawn if grain is None else grain))
        self._latency = self.random.choice((MS // 20, MS // 2, 5 * MS, 80 * MS))
        self._capacity = self.random.choice((500, 4096, 16384, 65536, 262144))
        self._listeners: dict[Any, list[Listening]] = {}
        self._mailboxes: dict[Any, Mailbox] = {}
        self._paths: dict[Any, tuple[int, int]] = {}
        self._port = 32768

    # -- the simulation's own

    def call(self, name: str, fd: int) -> None:
        """Every call to the system comes by here: it is counted, may be the one that fails, or be met by a signal."""
        error = self.failing(name, fd)
        if error:
            fail(error)

    def failing(self, name: str, fd: int) -> int:
        """The same for calls that return their error."""
        self.calls += 1
        if self.faults.on:
            self.throw_signals()
        if self._fail is not None and self._is_to_fail(name, fd, self._fail[0]):
            error = self._make_fail(name, fd, self._fail[1])
            return self.lost if error == errno.EBADF else error
        return 0

    def throw_signals(self) -> None:
        """Signals come when they like."""
        if self._thread != 1:
            return
        if self.faults.falls('signal.interrupt'):
            self.raise_signal(signal.SIGINT)
        if self.faults.falls('signal'):
            handled = [signum for signum, handler in self.handlers.items() if callable(handler) and signum != 2]
            if handled:
                self.raise_signal(self.random.choice(handled))

    def note(self, what: str, fd: int, detail: Any = None) -> None:
        """A line of the trace."""
        self.trace.append((self.time, what, fd, detail))

    def moved(self, what: str, fd: int, detail: Any = None) -> None:
        """A line of the trace about a call that got somewhere."""
        self.progress += 1
        self.trace.append((self.time, what, fd, detail))

    def show_trace(self, last: int | None = None) -> str:
        """The trace as text, one line for each thing that happened."""
        lines = self.trace if last is None else self.trace[-last:]
        return ''.join(
            f'{(time - START) / 1e9:14.6f}  {what}{f" fd={fd}" if fd >= 0 else ""}'
            f'{"" if detail is None else f"  {detail}"}\n'
            for time, what, fd, detail in lines
        )

    def reading(self, time: int) -> int:
        """What the clock says at a time, both in ns."""
        return time // self.clock_grain * self.clock_grain

    def busy(self, seconds: float) -> None:
        """Let time pass in a callback, as a slow one would."""
        self.time += int(seconds * 1e9)

    def calm(self) -> None:
        """No fault from now on, and descriptors enough: whatever was begun can come to its end."""
        self.note('calm', -1)
        self.faults.calm()
        self.descriptors = max(self.descriptors, PLENTY)
        self.silent.clear()

    def raise_signal(self, signum: int) -> None:
        """Send a signal to the program; the handler runs at once, as Python runs them between two instructions."""
        self.note('signal', -1, signum)
        bell = self.files.get(self.wakeup_fd)
        if isinstance(bell, End) and bell.connected and bell.room() > 0:
            bell.send(bytes((signum,)))
        handler = self.handlers.get(signum)
        if callable(handler):
            handler(signum, _getframe())

    def at(self, time: int, fn: Callable[..., object], *args: Any) -> None:
        """Have something happen at a time, in ns."""
        self._sequence += 1
        heappush(self._events, (time, self._sequence, fn, args))

    def after_latency(self, fn: Callable[..., object], *args: Any) -> None:
        """Have something happen after the time that the network takes."""
        self.at(self.time + self.draw_latency(), fn, *args)

    def draw_latency(self) -> int:
        """How long something is on its way, in ns."""
        if self.faults.falls('network.stall'):
            return self.random.randrange(1, 8000) * MS
        return self.random.randrange(1, 2 * self._latency)

    def draw_capacity(self) -> int:
        """How many bytes a socket holds."""
        return max(1, self.random.randrange(self._capacity // 2, 2 * self._capacity))

    def next_number(self) -> int:
        """A number for a file, never given twice."""
        self._numbers += 1
        return self._numbers

    # -- what the selector needs

    def begin_turn(self, timeout: float | None) -> None:
        """The loop is about to sleep: the turn is over."""
        self.on_turn(timeout)
        self.reads.clear()

    def run_due(self) -> None:
        """Let everything happen whose time has come."""
        while self._events and self._events[0][0] <= self.time:
            _, _, fn, args = heappop(self._events)
            fn(*args)

    def sleep_until(self, until: int | None) -> bool:
        """Let time pass until the next event, or `until`; False when neither will ever come."""
        coming = self._events[0][0] if self._events else None
        if coming is None and until is None:
            return False
        time = min(time for time in (coming, until) if time is not None)
        if self.grain:
            time = -(-time // self.grain) * self.grain
        self.time = max(self.time, time)
        if self.faults.falls('clock.jump'):
            self.time += self.random.randrange(1, 90_000) * MS
        return True

    # -- descriptors

    def file(self, fd: int) -> File:
        """What a descriptor stands for; EBADF when it is not open."""
        file = self.files.get(fd)
        if file is None:
            fail(self.lost)
        return file

    def lowest_free(self) -> int:
        """The lowest number that is free, as POSIX has it; EMFILE at the limit."""
        if len(self.files) + STDIO >= self.descriptors:
            fail(errno.EMFILE)
        fd, step = (FIRST_HANDLE, HANDLE_STEP) if self.kind == 'windows' else (STDIO, 1)
        while fd in self.files or fd == self._withheld:
            fd += step
        return fd

    def open(self, fd: int, file: File) -> None:
        """Give a number to a file."""
        self.files[fd] = file

    def close_fd(self, fd: int) -> None:
        """Close a descriptor; EBADF when it is not open."""
        file = self.file(fd)
        del self.files[fd]
        self.moved('close', fd, file.number)
        file.references -= 1
        if not file.references:
            file.closed()
            file.ready = 0

    def duplicate(self, fd: int) -> int:
        """Another number for the same file (`dup`)."""
        file, other = self.file(fd), self.lowest_free()
        file.references += 1
        self.open(other, file)
        return other

    def took(self, file: File, count: int) -> None:
        """So much was taken from a file in this turn: bytes of a connection, datagrams, clients."""
        self.reads[file] = self.reads.get(file, 0) + count

    # -- the network

    def bind(self, file: Any, family: int, kind: int, address: Any, reuse: bool) -> Any:
        """Give a socket an address; EADDRINUSE when another listens there."""
        if family == AF_UNIX:
            if not address:
                return ''
            if address in self._paths:
                fail(errno.EADDRINUSE)
            self._paths[address] = (1, self.next_number())
            if isinstance(file, Mailbox):
                self._mailboxes[address] = file
                file.local = address
            return address
        address = address or ('0.0.0.0' if family == AF_INET else '::', 0)
        if not address[1]:
            self._port += 1
            address = (address[0], self._port, *address[2:])
        if isinstance(file, Mailbox):
            if address in self._mailboxes:
                fail(errno.EADDRINUSE)
            self._mailboxes[address] = file
            file.local = address
        else:
            found = self._listeners.get(_key(address), ())
            if any(listening.exclusive for listening in found) and reuse:
                fail(errno.EACCES)
            if found and not reuse:
                fail(errno.EADDRINUSE)
        return address

    def listen(self, listening: Listening) -> None:
        """A socket begins to listen."""
        self._listeners.setdefault(_key(listening.address), []).append(listening)

    def forget_listener(self, listening: Listening) -> None:
        """A listener was closed."""
        key = _key(listening.address)
        self._listeners[key].remove(listening)
        if not self._listeners[key]:
            del self._listeners[key]

    def forget_mailbox(self, mailbox: Mailbox) -> None:
        """A datagram socket was closed."""
        if self._mailboxes.get(mailbox.local) is mailbox:
            del self._mailboxes[mailbox.local]

    def ephemeral(self, family: int) -> Any:
        """An address for who connects without one."""
        if family == AF_UNIX:
            return ''
        self._port += 1
        return ('127.0.0.1', self._port) if family == AF_INET else ('::1', self._port, 0, 0)

    def is_silent(self, address: Any) -> bool:
        """Whether nobody ever answers there."""
        return bool(address) and address[0] in self.silent

    def knock(self, end: End) -> bool:
        """A client asks to be let in; returns whether it is connected."""
        if not end.references:
            return False
        listening = self._listener(end.remote)
        if listening is None:
            self.refuse(end)
        elif len(listening.queue) > listening.backlog or not listening.takes_new:
            self.at(self.time + SYN_RETRY, self.knock, end)
        else:
            self._join(end, listening)
            return True
        return False

    def connect_unix(self, end: End) -> int:
        """The same over a Unix socket, at once; returns the error number."""
        listening = self._listener(end.remote)
        if listening is None:
            return errno.ECONNREFUSED if end.remote in self._paths else errno.ENOENT
        if len(listening.queue) > listening.backlog:
            return errno.EAGAIN if self.on_linux else errno.ECONNREFUSED
        self._join(end, listening)
        return 0

    def refuse(self, end: End) -> None:
        """Nobody listens there."""
        self._fail_connect(end, errno.ECONNREFUSED)

    def give_up(self, end: End) -> None:
        """Nobody has answered."""
        self._fail_connect(end, errno.ETIMEDOUT)

    def post_unix(self, sender: Mailbox, data: bytes, path: Any) -> int:
        """A datagram to a Unix socket arrives at once or is refused; returns the error number."""
        receiver = self._mailboxes.get(path)
        if receiver is None:
            return errno.ECONNREFUSED if path in self._paths else errno.ENOENT
        if len(receiver.inbox) >= UNIX_QUEUE:
            return errno.EAGAIN if self.on_linux else errno.ENOBUFS  # and the sender is called writable all the same
        receiver.arrive(data, sender.local)
        return 0

    def post(self, sender: Mailbox, data: bytes, address: Any) -> None:
        """A datagram arrives where it was sent to, or nowhere."""
        host, port = address[:2]
        for found in (address, (host, port), ('0.0.0.0', port), ('::', port, 0, 0), ('::', port)):
            if found in self._mailboxes:
                local = sender.local
                self._mailboxes[found].arrive(data, ('127.0.0.1', *local[1:]) if local[0] == '0.0.0.0' else local)
                return
        sender.refuse()

    # -- what Kernel has

    def clock(self) -> float:
        return self.reading(self.time) / 1e9

    def selector(self) -> Any:
        self.call('selector', -1)
        return SimSelector(self, self.kind)

    def new_selector_like(self, selector: Any) -> Any:
        self.replaced_in_vain |= not selector.blind
        return self.selector()

    def room_of(self, selector: Any) -> Callable[[int], bool] | None:
        if selector.kind == 'windows':
            return lambda fd: len(selector.get_map()) < MOST_SOCKETS
        return FD_SETSIZE.__gt__ if selector.kind == 'select' else None

    def has_bytes(self, sock: Any) -> bool:
        return bool(getattr(self.files.get(sock.fileno()), 'inbox', b''))

    def is_open(self, fd: int) -> bool:
        return fd in self.files

    def readiness(self, fd: int, events: int) -> int:
        file = self.files.get(fd)
        if file is None or self.kind == 'windows':  # which has no `poll` to ask
            return events
        return (file.ready | file.stuck) & events or (ONLY_ERROR if file.unread_error else 0)

    def received_memory(self, fd: int) -> int:
        return 0

    def never_blocks(self, fd: int) -> bool:
        if self.kind == 'windows':
            return False
        self.call('fstat', fd)
        self.file(fd)
        return False

    def has_clients(self, sock: Any) -> bool:
        if self.failing('poll', sock.fileno()):
            return True
        file = self.files.get(sock.fileno())
        return isinstance(file, Listening) and len(file.queue) > 0

    def tcp_counts(self, sock: Any) -> tuple[int, int, int]:
        self.call('getsockopt', sock.fileno())
        end = self.file(sock.fileno())
        if not isinstance(end, End) or end.instant or end.peer is None or end.dead:
            fail(errno.ENOTCONN)
        return end.received + len(end.inbox), end.sent - end.peer.on_the_way, 0

    def drop_new_connections(self, sock: Any) -> bool:
        file = self.files.get(sock.fileno())
        if not self.on_linux or not isinstance(file, Listening):
            return False
        file.takes_new = False
        return True

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        self.call('socket', -1)
        if family == AF_UNIX and self.kind == 'windows':
            fail(errno.EAFNOSUPPORT)
        if self.faults.falls('socket.exhausted'):
            fail(self.random.choice(EXHAUSTED[:3]))
        fd = self.lowest_free()
        self.open(fd, Unborn(self) if kind == SOCK_STREAM else Mailbox(self, family))
        return SimSocket(self, family, kind, fd)

    def socketpair(self) -> Any:
        self.call('socketpair', -1)
        family = AF_INET if self.kind == 'windows' else AF_UNIX
        ends = End(self, family, family == AF_UNIX), End(self, family, family == AF_UNIX)
        for end, peer in zip(ends, ends[::-1], strict=True):
            end.peer, end.connected, end.private = peer, True, True
            end.local = peer.remote = self.ephemeral(family)
            end.capacity = self.random.randrange(1, 200)  # as full of doorbells as it gets
        sockets = []
        for end in ends:
            fd = self.lowest_free()
            self.open(fd, end)
            end.look()
            sockets.append(SimSocket(self, family, SOCK_STREAM, fd))
        ends[0].look()
        return tuple(sockets)

    def pipe(self, writing: bool) -> Any:
        raise OSError(errno.ENOTSUP, 'processes and their pipes are not simulated')

    def spawn(self, args: list[Any], *rest: Any) -> Any:
        raise OSError(errno.ENOTSUP, f'processes are not simulated: {args[0]!r} was not started')

    def make_file(self, data: bytes) -> Stored:
        """An open file for `send_file`, to be closed by who asked for it."""
        fd = self.lowest_free()
        self.files[fd] = file = Stored(self, fd, data)
        return file

    def size_of_file(self, fd: int) -> int:
        self.call('fstat', fd)
        return len(self._stored(fd).data)

    def copy_of_file(self, fd: int) -> int:
        self.call('dup', fd)
        return self.duplicate(fd)

    def read_file(self, fd: int, offset: int, count: int) -> bytes:
        self.call('pread', fd)
        return self._stored(fd).data[offset : offset + count]

    def sendfile(self, sock: Any, fd: int, offset: int, count: int) -> int:
        sent: int = sock.sendfile(self._stored(fd).data[offset : offset + count])
        return sent

    def getaddrinfo(self, host: str | None, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        if host is None:
            found: tuple[str, ...] = ('0.0.0.0', '::') if flags else ('127.0.0.1', '::1')
        else:
            found = self._look_up(host, flags)
        infos: list[Any] = []
        for address in found:
            version = AF_INET6 if ':' in address else AF_INET
            if family in (0, version):
                place = (address, port) if version == AF_INET else (address, port, 0, 0)
                infos.append((version, kind, 0, '', place))
        if not infos:
            raise gaierror(EAI_NONAME, 'simulated: name or service not known')
        return infos

    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        self._call_resolver('getnameinfo')
        for name, addresses in self.hosts.items():
            if address[0] in addresses and not self.faults.falls('lookup.fails'):
                return name, str(address[1])
        raise gaierror(EAI_NONAME, 'simulated: name or service not known')

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        # A thread runs while the loop sleeps, from its beginning to its end.
        if self.failing('thread', -1) or self.faults.falls('thread.fails'):
            raise RuntimeError("can't start new thread")
        self.threads += 1
        self.at(self.time + self.random.randrange(1, 400) * MS // 10, self._run_thread, target)

    def thread(self) -> int:
        return self._thread

    def in_main_thread(self) -> bool:
        return self._thread == 1

    def pid(self) -> int:
        return 1

    def sleep(self, seconds: float) -> None:
        self.busy(seconds)

    def set_wakeup_fd(self, fd: int) -> int:
        self.call('set_wakeup_fd', fd)
        before, self.wakeup_fd = self.wakeup_fd, fd
        return before

    def signal(self, signum: int, handler: Any) -> Any:
        signum = int(signum)
        if signum in (signal.SIGKILL, signal.SIGSTOP) or not 0 < signum < signal.NSIG:
            fail(errno.EINVAL)
        self.call('signal', -1)
        before, self.handlers[signum] = self.handlers.get(signum, signal.SIG_DFL), handler
        return before

    def getsignal(self, signum: int) -> Any:
        return self.handlers.get(int(signum), signal.SIG_DFL)

    def watch_forks(self) -> None:
        """Nothing: a simulated process is not forked."""

    def identity(self, fd: int) -> Any:
        file = self.files.get(fd)
        if self.kind == 'windows':
            return None if file is None else fd  # fstat knows no sockets there
        return None if file is None else file.number

    def write(self, fd: int, data: bytes) -> int:
        self.call('write', fd)
        return len(data)

    def socket_file(self, path: str | bytes) -> tuple[int, int] | None:
        self.call('lstat', -1)
        return self._paths.get(path)

    def absolute_path(self, path: str | bytes) -> str | bytes:
        return path  # there are no directories

    def lock_folder(self, path: str | bytes) -> int:
        return -1  # there are no other programs

    def unlink(self, path: str | bytes) -> None:
        self.call('unlink', -1)
        self._paths.pop(path, None)

    def chmod(self, path: str | bytes, mode: int) -> None:
        self.call('chmod', -1)

    # -- in this file

    def _take_manners(self, random: Random) -> None:
        # Of the system, as `Kernel` has them of the one that it runs on.
        self.replaced_in_vain = False  # a selector that had reported all that it should
        self.lost = errno.ENOTSOCK if self.kind == 'windows' else errno.EBADF
        self.counts_tcp = self.nodelay_inherited = self.on_linux
        if self.kind != 'windows':
            return
        self.reuse_address = False
        self.exclusive_address = ~SO_REUSEADDR
        self.reset_on_close = b'\1\0\0\0'
        self.connecting = frozenset({errno.EWOULDBLOCK, errno.EALREADY})
        # Up to Python 3.12 the clock is that of the ticks; since then it is exact. Programs can ask for finer ticks.
        self.clock_grain, self.tick = random.choice(((TICK, TICK), (TICK, MS), (100, TICK)))
        self.clock_step = step_of_waits('nt', self.clock_grain / 1e9)

    def _is_to_fail(self, name: str, fd: int, n: int) -> bool:
        if self.calls < n:
            return False
        if self.calls > n and not self._lasting:
            return False
        file = self.files.get(fd)
        what = name, file if self._lasting == 'descriptor' else (type(file), getattr(file, 'private', False))
        if self.calls == n:
            self._failing = what
        return what == self._failing

    def _make_fail(self, name: str, fd: int, error: int) -> int:
        self.failed = name
        self.note(f'{name} is made to fail', fd, errno.errorcode.get(error, error))
        file = self.files.get(fd)
        if file is not None:
            file.refused_at = self.time
        if isinstance(file, End) and (name in UNREAD or error == errno.EBADF):
            file.misled = True
        if isinstance(file, End) and error != errno.EAGAIN and (name in ENDING or (name, error) == LOST):
            file.told.append(error)
        if file is not None and error == errno.EBADF:
            self.close_fd(fd)
            # Neither poll nor select looks at what is registered; they find out when they are to wait for it.
            untold = name in ('register', 'modify') and self.kind not in ('epoll', 'kqueue')
            if untold or name in UNHEARD:
                self._withheld = fd
            return 0 if untold else error
        if isinstance(file, End) and name == 'shutdown':
            file.cut(errno.ECONNRESET)  # it fails only when there is no connection any more
        return error

    def _run_thread(self, target: Callable[[], None]) -> None:
        self._numbers += 1
        self._thread = 1000 + self._numbers
        try:
            target()
        finally:
            self._thread = 1
            self.threads -= 1

    def _stored(self, fd: int) -> Stored:
        file = self.file(fd)
        if not isinstance(file, Stored):
            raise ValueError(f'descriptor {fd} is no simulated file: have it made by SimKernel.make_file()')
        return file

    def _call_resolver(self, name: str) -> None:
        error = self.failing(name, -1)
        if error:
            raise gaierror(error, 'simulated: the look-up failed')

    def _look_up(self, host: str, flags: int) -> tuple[str, ...]:
        try:
            return (str(ip_address(host.partition('%')[0])),)
        except ValueError:
            pass
        if flags & AI_NUMERICHOST:
            raise gaierror(EAI_NONAME, 'simulated: not a number')
        self._call_resolver('getaddrinfo')
        if self.faults.falls('lookup.fails'):
            raise gaierror(EAI_AGAIN, 'simulated: the name server does not answer')
        return self.hosts.get(host, ())

    def _listener(self, address: Any) -> Listening | None:
        if isinstance(address, tuple):
            for host in (address[0], '0.0.0.0', '::'):
                group = self._listeners.get((host, address[1]))
                if group:
                    return self.random.choice(group)
            return None
        group = self._listeners.get(address)
        return group[0] if group and address in self._paths else None

    def _join(self, client: End, listening: Listening) -> None:
        server = End(self, client.family, client.instant)
        server.references = 0
        server.accepted = False
        client.peer, server.peer = server, client
        server.local, server.remote = listening.address, client.local
        client.connected = server.connected = True
        client.look()
        server.look()
        self.note('connected', -1, (client.number, server.number))
        if listening.deferred:
            self._let_in(server, listening, self.time + DEFERRED)
        else:
            listening.arrive(server)

    def _let_in(self, server: End, listening: Listening, until: int) -> None:
        if not listening.references:
            server.reset()
        elif server.inbox or server.ended_in or server.dead or self.time >= until:
            listening.arrive(server)
        else:
            self.at(self.time + MS, self._let_in, server, listening, until)

    def _fail_connect(self, end: End, error: int) -> None:
        if end.references:
            end.error, end.dead, end.refused = error, True, True
            self.note('connect failed', -1, (end.number, errno.errorcode[error]))
            end.look()


def _key(address: Any) -> Any:
    return address[:2] if isinstance(address, tuple) else address


def _nothing(timeout: float | None) -> None:
    pass
