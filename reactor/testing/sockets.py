"""Simulated sockets: the methods of `socket.socket` that a reactor calls, with their errors and faults.

Every misbehaviour here occurs on some real system, so a program that cannot handle it is wrong.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..kernel.platforms import SO_MEMINFO, TCP_DEFER_ACCEPT
from .agenda import excerpt
from .descriptors import Descriptors
from .faults import fail
from .files import SILENCE, End, File, Listening, Mailbox, Unborn

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
UNREACHABLE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH)
BROKEN = (errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH)
LARGEST_DATAGRAM = 65507
LARGEST_UNIX_DATAGRAM = 212_960  # bytes: the largest datagram that fits into the default SO_SNDBUF


class SimSocket:
    """A socket on a `SimKernel`."""

    def __init__(self, kernel: Descriptors, family: int, kind: int, fd: int) -> None:
        self.kernel = kernel
        self.family = family
        self.type = kind
        self._fd = fd
        self._bound: Any = None
        self._options: set[int] = set()

    # -- the socket object

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            error = self.kernel.failing('close', fd)
            if error != errno.EBADF:
                self.kernel.close_fd(fd)
            if error:
                fail(error)

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError('simulated sockets cannot block: setblocking(True) is not supported')

    @property
    def file(self) -> Any:
        """The file of the socket; fails with EBADF if its descriptor was closed."""
        return self.kernel.file(self._fd)

    # -- streams

    def accept(self) -> tuple[SimSocket, Any]:
        kernel = self.kernel
        kernel.call('accept', self._fd)
        listening = self.file
        falls = kernel.faults.falls
        if not isinstance(listening, Listening):
            fail(errno.EINVAL)
        if not listening.queue or falls('accept.spurious', self._fd):
            listening.refused_at = kernel.time
            raise BlockingIOError(errno.EAGAIN, 'simulated: no client is waiting')
        if falls('accept.exhausted', self._fd):
            listening.refused_at = kernel.time
            fail(kernel.faults.pick(EXHAUSTED))
        if falls('accept.aborted', self._fd):
            listening.take().reset()
            fail(kernel.faults.pick((errno.ECONNABORTED, errno.EPROTO, errno.EPERM)))
        listening.refused_at = kernel.time  # set this first, because `lowest_free` may fail
        fd = kernel.lowest_free()
        end = listening.take()
        # macOS reports no address for a client that has already left, so Python returns None.
        address = None if end.dead and kernel.kind == 'kqueue' else end.remote
        end.accepted = True
        end.nodelay = listening.nodelay and kernel.nodelay_inherited
        end.references = 1
        kernel.open(fd, end)
        kernel.moved('accepted', fd, end.number)
        kernel.took(listening, 1)
        return SimSocket(kernel, self.family, self.type, fd), address

    def bind(self, address: Any) -> None:
        self.kernel.call('bind', self._fd)
        # On Windows SO_REUSEADDR lets several sockets share a port, as SO_REUSEPORT does elsewhere.
        reuse = (socket.SO_REUSEADDR if self.kernel.kind == 'windows' else socket.SO_REUSEPORT) in self._options
        self._bound = self.kernel.bind(self.file, self.family, self.type, address, reuse)

    def listen(self, backlog: int = 128) -> None:
        kernel = self.kernel
        kernel.call('listen', self._fd)
        if isinstance(self.file, Unborn):
            deferred = TCP_DEFER_ACCEPT in self._options
            self.kernel.files[self._fd] = listening = Listening(kernel, self._bound, backlog, deferred)
            listening.nodelay = socket.TCP_NODELAY in self._options
            listening.exclusive = kernel.exclusive_address in self._options
            kernel.listen(listening)
            kernel.note('listening', self._fd, listening.number)

    def connect(self, address: Any) -> None:
        error = self.connect_ex(address)
        if error:
            fail(error)

    def connect_ex(self, address: Any) -> int:
        kernel, falls = self.kernel, self.kernel.faults.falls
        if self.type == socket.SOCK_DGRAM:
            kernel.call('connect', self._fd)
            mailbox = self.file
            mailbox.local = mailbox.local or kernel.bind(mailbox, self.family, self.type, None, False)
            mailbox.remote = address
            return 0
        error = kernel.failing('connect', self._fd)
        if error:
            return error
        end = End(kernel, self.family, self.family == socket.AF_UNIX)
        end.local = self._bound or kernel.ephemeral(self.family)
        end.remote = address
        if self.family != socket.AF_UNIX and falls('connect.unreachable', self._fd):
            return int(kernel.faults.pick(UNREACHABLE))
        kernel.files[self._fd] = end
        kernel.moved('connecting', self._fd, end.number)
        kernel.connects[self._fd] = end
        if self.family == socket.AF_UNIX:
            return kernel.connect_unix(end)
        if falls('connect.refused', self._fd):
            kernel.after_latency(kernel.refuse, end)
        elif falls('connect.silent', self._fd) or kernel.is_silent(address):
            kernel.at(kernel.time + SILENCE, kernel.give_up, end)
        elif falls('connect.at_once', self._fd) and kernel.try_connect(end):
            return 0
        else:
            kernel.after_latency(kernel.try_connect, end)
        return errno.EWOULDBLOCK if kernel.kind == 'windows' else errno.EINPROGRESS

    def recv(self, size: int, flags: int = 0) -> bytes:
        kernel, falls = self.kernel, self.kernel.faults.falls
        kernel.call('recv', self._fd)
        end = self.file
        if isinstance(end, Mailbox):
            return self._receive(end, size)[0]
        if not isinstance(end, End) or not (end.connected or end.error):
            fail(errno.ENOTCONN)
        if falls('recv.spurious', self._fd):
            end.misled, end.refused_at = True, kernel.time
            raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')
        if flags & socket.MSG_PEEK and end.inbox:
            return bytes(end.inbox[:size])
        if end.inbox:
            if falls('recv.short', self._fd):
                size = kernel.faults.between(1, min(size, len(end.inbox)) + 1)
            data = end.take(size)
            kernel.moved('recv', self._fd, excerpt(data))
            kernel.took(end, len(data))
            return data
        if end.error:
            fail(end.take_error())
        if end.ended_in or end.dead:
            kernel.moved('recv', self._fd, excerpt(b''))
            return b''
        raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')

    def send(self, data: Any) -> int:
        return self._send('send', data)

    def sendmsg(self, buffers: list[Any]) -> int:
        # Windows has no sendmsg. There the reactor sends only the first buffer.
        return self._send('sendmsg', buffers[0] if self.kernel.kind == 'windows' else b''.join(buffers))

    def sendfile(self, data: bytes) -> int:
        """Send bytes of a file, like `os.sendfile`."""
        return self._send('sendfile', data)

    def _send(self, name: str, data: Any) -> int:
        end = self.kernel.files.get(self._fd)
        try:
            return self._try_to_send(name, data)
        except BlockingIOError:
            raise
        except OSError:
            if isinstance(end, End):
                end.send_failed(bytes(data))
            raise

    def _try_to_send(self, name: str, data: Any) -> int:
        kernel, falls = self.kernel, self.kernel.faults.falls
        kernel.call(name, self._fd)
        end = self.file
        if isinstance(end, Mailbox):
            return self._post(end, data, end.remote)
        self._check_sending(end)
        room = end.room()
        end.refused_at = kernel.time if room > 0 else end.refused_at
        if room <= 0 or (not end.private and falls('send.again', self._fd)):
            raise BlockingIOError(errno.EAGAIN, 'simulated: no room')
        # On macOS, a send can fail with EPROTOTYPE shortly before sends begin to fail with EPIPE.
        broken = (errno.EPIPE, errno.EPROTOTYPE) if kernel.kind == 'kqueue' else (errno.EPIPE,)
        for site, errors in (('send.broken', broken), ('send.exhausted', (errno.ENOBUFS, errno.ENOMEM))):
            if not (end.instant or end.private) and falls(site, self._fd):
                error = kernel.faults.pick(errors)
                end.reported.append(error)
                fail(error)
        count: int = min(room, len(data))
        if count and falls('send.short', self._fd):
            count = kernel.faults.between(1, count + 1)
        if count:
            end.send(bytes(data[:count]))
        kernel.moved(name, self._fd, excerpt(bytes(data[:count])))
        if not (end.instant or end.private) and falls('network.broken', self._fd):
            end.cut(kernel.faults.pick(BROKEN))
        return count

    def _check_sending(self, end: Any) -> None:
        if not isinstance(end, End) or not end.connected:
            fail(errno.ENOTCONN)
        if end.error:
            fail(end.take_error())
        peer = end.peer
        if end.ended_out or end.dead or (end.instant and peer is not None and peer.gone):
            end.reported.append(errno.EPIPE)
            fail(errno.EPIPE)

    def shutdown(self, how: int) -> None:
        kernel = self.kernel
        kernel.call('shutdown', self._fd)
        end = self.file
        if not isinstance(end, End) or not end.connected or end.dead:
            fail(errno.ENOTCONN)
        kernel.moved('shutdown', self._fd, how)
        if how != socket.SHUT_RD:
            end.end()

    # -- datagrams

    def sendto(self, data: Any, address: Any) -> int:
        self.kernel.call('sendto', self._fd)
        return self._post(self.file, data, address)

    def _post(self, mailbox: Mailbox, data: Any, address: Any) -> int:
        kernel, falls = self.kernel, self.kernel.faults.falls
        if mailbox.error and kernel.kind != 'windows':
            error, mailbox.error = mailbox.error, 0
            mailbox.look()
            fail(error)
        if address is None:
            fail(errno.EDESTADDRREQ)
        if len(data) > (LARGEST_UNIX_DATAGRAM if self.family == socket.AF_UNIX else LARGEST_DATAGRAM):
            fail(errno.EMSGSIZE)
        if falls('datagram.again', self._fd):
            raise BlockingIOError(errno.EAGAIN, 'simulated: no room')
        if falls('datagram.full', self._fd):
            fail(errno.ENOBUFS)
        mailbox.local = mailbox.local or kernel.bind(mailbox, self.family, self.type, None, False)
        if self.family == socket.AF_UNIX:
            error = kernel.post_unix(mailbox, bytes(data), address)
            if error:
                fail(error)
        elif not falls('datagram.lost', self._fd):
            for _ in range(2 if falls('datagram.twice', self._fd) else 1):
                kernel.after_latency(kernel.post, mailbox, bytes(data), address)
        kernel.moved('sendto', self._fd, excerpt(data))
        return len(data)

    def recv_into(self, buffer: Any, size: int, flags: int) -> int:
        """Return the length of the next datagram. The reactor calls this only with MSG_PEEK | MSG_TRUNC."""
        self.kernel.call('recv', self._fd)
        mailbox: Mailbox = self.file
        if not mailbox.inbox:
            raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')
        length = len(mailbox.inbox[0][0])
        return length if self.kernel.on_linux else min(1, length)  # only Linux accepts MSG_TRUNC here

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        kernel = self.kernel
        kernel.call('recvfrom', self._fd)
        return self._receive(self.file, size)

    def _receive(self, mailbox: Mailbox, size: int) -> tuple[bytes, Any]:
        kernel = self.kernel
        if mailbox.error:
            error, mailbox.error = mailbox.error, 0
            mailbox.look()
            fail(error)
        if not mailbox.inbox or kernel.faults.falls('recv.spurious', self._fd):
            raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')
        data, sender = mailbox.take()
        kernel.moved('recvfrom', self._fd, excerpt(data))
        kernel.took(mailbox, 1)
        return data[:size], sender

    # -- options and names

    def setsockopt(self, level: int, option: int, value: Any = None) -> None:
        kernel = self.kernel
        kernel.call('setsockopt', self._fd)
        file: File = self.file
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY) and isinstance(file, End | Listening):
            file.nodelay = True  # recorded even if the call fails, because the reactor has tried to set it
        if isinstance(file, End) and file.dead and kernel.kind == 'kqueue':
            fail(errno.EINVAL)  # macOS accepts no options on a socket that is shut down in both directions
        if level == socket.SOL_SOCKET and option == socket.SO_LINGER and isinstance(file, End):
            if len(value) != len(kernel.reset_on_close):
                fail(errno.EINVAL)
            file.lingers = False
            return
        if option == socket.SO_REUSEPORT and level == socket.SOL_SOCKET and kernel.kind == 'windows':
            fail(errno.ENOPROTOOPT)
        if isinstance(file, End) and kernel.faults.falls('setsockopt.invalid', self._fd):
            fail(errno.EINVAL)
        defers = (level, option) == (socket.IPPROTO_TCP, TCP_DEFER_ACCEPT)
        if defers and not kernel.on_linux:
            return  # the reactor relies on this option only on Linux
        if defers and isinstance(file, Listening):
            file.deferred = bool(value)
        reuse = socket.SO_REUSEPORT, socket.SO_REUSEADDR, kernel.exclusive_address
        if level == socket.IPPROTO_TCP or option in reuse:
            self._options.add(option)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        self.kernel.call('getsockopt', self._fd)
        file = self.file
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            return file.take_error() if isinstance(file, End) else 0
        if level == socket.SOL_SOCKET and option == SO_MEMINFO and size:
            if not self.kernel.on_linux:
                fail(errno.ENOPROTOOPT)
            return (file.dropped if isinstance(file, Mailbox) else 0).to_bytes(size, 'little')
        return bytes(size) if size else 0

    def getsockname(self) -> Any:
        self.kernel.call('getsockname', self._fd)
        file = self.file
        local = getattr(file, 'local', None) or getattr(file, 'address', None) or self._bound
        return local if local is not None else _anywhere(self.family)

    def getpeername(self) -> Any:
        kernel = self.kernel
        kernel.call('getpeername', self._fd)
        file = self.file
        connected = isinstance(file, End) and file.connected and not file.dead
        if not connected and not (isinstance(file, Mailbox) and file.remote is not None):
            fail(errno.ENOTCONN)
        if kernel.faults.falls('address.peer', self._fd):
            fail(errno.ENOTCONN)
        return file.remote

    def __repr__(self) -> str:
        return f'<SimSocket fd={self._fd}>'


def _anywhere(family: int) -> Any:
    if family == socket.AF_UNIX:
        return ''
    return ('0.0.0.0', 0) if family == socket.AF_INET else ('::', 0, 0, 0)
