"""The simulated operating system: `SimKernel(seed)` in place of `reactor.kernel.Kernel`.

The methods of `Kernel` are here. Their state is in the base classes, from the bottom up: `platforms` (the kind of
system), `agenda` (time and events), `network` (addresses and connections) and `descriptors`.

All random decisions are drawn from the seed, in the order of the calls. Each kind of fault and each connection has its
own random numbers. The same program with the same seed makes the same calls with the same results. Regular files come
from `make_file`; processes are not simulated.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AI_NUMERICHOST,
    EAI_AGAIN,
    EAI_NONAME,
    SOCK_STREAM,
    gaierror,
    inet_aton,
    inet_ntoa,
)
from typing import Any

from ..kernel.calls import ONLY_ERROR
from ..kernel.polling import KeySource
from .descriptors import Descriptors
from .faults import fail
from .files import READ, End, Listening, Stored, Unborn
from .mailboxes import Mailbox
from .platforms import MS
from .poller import FD_SETSIZE, MOST_SOCKETS, SimSelector
from .reports import SimEventSelector
from .sockets import EXHAUSTED, SimSocket
from .threads import Threads

PLENTY = 1000  # descriptors: enough for every program, and fewer than the limit of select
HOSTS: dict[str, tuple[str, ...]] = {
    'localhost': ('127.0.0.1',),
    'server.test': ('10.0.0.1',),
    'both.test': ('fd00::1', '10.0.0.1'),
}


class SimKernel(Descriptors):
    """A simulated operating system for `Reactor(kernel=...)`. It takes no real time.

    Args:
        seed: Decides all random choices: latencies, buffer sizes, faults.
        selector: The platform: 'epoll', 'poll', 'select' (Linux), 'kqueue' (a BSD or macOS) or 'windows'. It decides
            how selectors, sockets and the clock behave. None: drawn from the seed.
        faults: True: drawn from the seed. False: none. Names in `faults.SITES`: only these faults, each with its
            highest probability.
        only: Of the faults that `faults` allows, only these happen: a tuple of names, or 'clock.jump@3' for only the
            third strike of a fault. The reports of failed runs have such lists. None: all happen.
        descriptors: How many descriptors may be open at once.
        grain: Time advances in steps of this many seconds. All events of one step (connections, datagrams, timers,
            signals, threads) are ready in one turn. 0: time advances from one event to the next. None: drawn from the
            seed.
        hosts: A dict of host names and their addresses for look-ups, in addition to 'localhost'.
        fail: (n, error): the n-th call to the system fails with this error number. EBADF: other code closes the
            descriptor right before the call. Do not use EINTR: Python repeats such calls (PEP 475). Reading the clock
            never fails, nor does `unregister`, whose errors `selectors` hides.
        profile: 'default', or 'hostile' for a harsher world: peers vanish without a word, partitions last minutes,
            look-ups take seconds, stalls are about as long as the program's own time limits, peers send a byte a
            second, and threads interleave with the loop. The modules `hostile` and `threads` have the rules.
        keepalive: In the profile 'hostile', connections whose peer has vanished end when the faults stop, for programs
            that set no time limits.
        lasting: With `fail`. None: only the n-th call fails. 'kind': later calls of this kind on files of the same kind
            fail too. 'descriptor': later calls of this kind on the same descriptor fail too.

    On kqueue and Windows, TCP_NODELAY is not inherited, `defer_accept` has no effect, and neither the bytes of a
    connection nor dropped datagrams are counted. On kqueue, a full Unix socket refuses clients and datagrams (unix(4)
    of FreeBSD), `accept` may return no address, and options cannot be set on a connection that has ended.

    Windows has no Unix sockets and no SO_REUSEPORT. It numbers sockets from 400 in steps of 4, fails with ENOTSOCK
    instead of EBADF and with EWOULDBLOCK instead of EINPROGRESS, and sends one buffer at a time. A reset erases unread
    bytes. The wakeup is a TCP connection (`socketpair` in CPython's Lib/socket.py). The clock has steps of 15.6 ms, or
    waits can be too short by up to 15.6 ms, or both.

    `trace` lists the events as (time in ns, name, descriptor, detail); `show_trace` renders it as text.
    """

    wakeup_fd: int

    def __init__(
        self,
        seed: int = 0,
        *,
        selector: str | None = None,
        faults: bool | tuple[str, ...] = True,
        only: Iterable[str] | None = None,
        descriptors: int = PLENTY,
        grain: float | None = None,
        hosts: Mapping[str, tuple[str, ...]] | None = None,
        fail: tuple[int, int] | None = None,
        lasting: str | None = None,
        profile: str = 'default',
        keepalive: bool = False,
    ) -> None:
        super().__init__(fail, lasting, keepalive, grain, seed, selector, faults, only, descriptors, profile)
        self.hosts: dict[str, tuple[str, ...]] = {**HOSTS, **(hosts or {})}
        self.replaced_in_vain: bool = False  # a selector was replaced although it worked
        self.suspended: Threads = Threads(self)
        self.owners: list[Any] = []  # type: ignore[misc]  # not the list of the real process

    # -- called by the simulation

    def calm(self) -> None:
        """Stop all faults and allow enough descriptors, so that everything can end."""
        self.note('calm', -1)
        self.faults.calm()
        self.descriptors: int = max(self.descriptors, PLENTY)
        self.silent.clear()
        super().calm()

    # -- the methods of Kernel

    def selector(self) -> Any:
        self.call('selector', -1)
        # Half of the simulated Linux systems have the selector that the real kernel makes, the others that of the
        # module `selectors`.
        kind = SimEventSelector if self.kind == 'epoll' and self.seed % 2 == 0 else SimSelector
        return kind(self, self.kind)

    def new_selector_like(self, selector: Any) -> Any:
        self.replaced_in_vain |= not (selector.blind or (self.disturbed and self.watches_files(selector)))
        return self.selector()

    def event_source(self, selector: Any) -> Any:
        return selector if selector.reports_numbers else KeySource(selector)

    def watches_files(self, selector: Any) -> bool:
        return bool(selector.kind == 'epoll')

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
        if file is None or self.kind == 'windows':  # Windows has no `poll`
            return events
        found = events if file.hung_up else (file.ready | file.stuck) & events
        return found or (ONLY_ERROR if file.unread_error else 0)

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
        return isinstance(file, Listening) and bool(file.ready & READ)

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
            fail(self.faults.pick(EXHAUSTED[:3]))
        fd = self.lowest_free()
        self.open(fd, Unborn(self) if kind == SOCK_STREAM else Mailbox(self, family))
        return SimSocket(self, family, kind, fd)

    def socketpair(self) -> Any:
        self.call('socketpair', -1)
        family = AF_INET if self.kind == 'windows' else AF_UNIX
        ends = End(self, family, family == AF_UNIX, 1), End(self, family, family == AF_UNIX, 2)
        for end, peer in zip(ends, ends[::-1], strict=True):
            end.peer, end.connected, end.private = peer, True, True
            end.local = peer.remote = self.ephemeral(family)
            end.capacity = self.random.randrange(1, 200)  # small, so that wakeup bytes can fill it
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

    def open_fd(self, fd: int, owner: Any, keep: bool) -> Any:
        raise OSError(errno.ENOTSUP, f'only sockets are simulated, so descriptor {fd} cannot be opened')

    def spawn(self, args: list[Any], *rest: Any) -> Any:
        raise OSError(errno.ENOTSUP, f'processes are not simulated: {args[0]!r} was not started')

    def make_file(self, data: bytes) -> Stored:
        """Return an open file with this content, for `send_file`. The caller closes it."""
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
        if self.failing('thread', -1) or self.faults.falls('thread.fails'):
            raise RuntimeError("can't start new thread")
        pool = name.rpartition('-')[0]
        self.threads[pool] += 1
        self.suspended.start(target, self.random.randrange(1, 400) * MS // 10, pool)

    def thread(self) -> int:
        return self.running_thread

    def in_main_thread(self) -> bool:
        return self.running_thread == 1

    def pid(self) -> int:
        return 1

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
        """Do nothing: a simulated process is never forked."""

    def identity(self, fd: int) -> Any:
        file = self.files.get(fd)
        if file is None:
            return None
        return fd if self.kind == 'windows' else file.number  # fstat on Windows does not support sockets

    def write(self, fd: int, data: bytes) -> int:
        self.call('write', fd)
        return len(data)

    def socket_file(self, path: str | bytes) -> tuple[int, int] | None:
        self.call('lstat', -1)
        return self.paths.get(path)

    def absolute_path(self, path: str | bytes) -> str | bytes:
        return path  # there are no directories

    def lock_folder(self, path: str | bytes) -> int:
        return -1  # there are no other programs

    def unlink(self, path: str | bytes) -> None:
        self.call('unlink', -1)
        self.paths.pop(path, None)

    def chmod(self, path: str | bytes, mode: int) -> None:
        self.call('chmod', -1)

    # -- private methods

    def _stored(self, fd: int) -> Stored:
        file = self.file(fd)
        if not isinstance(file, Stored):
            raise ValueError(f'descriptor {fd} is not a simulated file; get one from SimKernel.make_file()')
        return file

    def _call_resolver(self, name: str) -> None:
        error = self.failing(name, -1)
        if error:
            raise gaierror(error, 'simulated: the look-up failed')
        if self.hostile and self.faults.falls('lookup.slow'):
            self.suspended.pause(self.faults.between(1000, 30_000))

    def _look_up(self, host: str, flags: int) -> tuple[str, ...]:
        try:
            return (str(ip_address(host.partition('%')[0])),)
        except ValueError:
            pass
        try:
            return (inet_ntoa(inet_aton('' if ' ' in host else host)),)  # '127.1' is 127.0.0.1
        except OSError:
            pass
        if flags & AI_NUMERICHOST:
            raise gaierror(EAI_NONAME, 'simulated: the host is not a numeric address')
        self._call_resolver('getaddrinfo')
        if self.faults.falls('lookup.fails'):
            raise gaierror(EAI_AGAIN, 'simulated: the name server does not answer')
        return self.hosts.get(host, ())
