"""Simulated sockets: the methods of `socket.socket` that a reactor calls, with their errors and faults.

Every misbehaviour here occurs on some real system, so a program that cannot handle it is wrong.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..kernel.platforms import AF_UNIX, TCP_DEFER_ACCEPT
from .addresses import address_for
from .agenda import excerpt
from .datagrams import SimDatagrams
from .faults import fail
from .files import READ, SILENCE, WRITE, End, File, Listening, Unborn
from .mailboxes import Mailbox
from .options import LINGER

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
UNREACHABLE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH)
BROKEN = (errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH)


class SimSocket(SimDatagrams):
    """A socket on a `SimKernel`."""

    # -- streams

    def accept(self) -> tuple[SimSocket, Any]:
        kernel = self.kernel
        kernel.call('accept', self._fd)
        listening = self.file
        falls = kernel.faults.falls
        if not isinstance(listening, Listening):
            fail(errno.EOPNOTSUPP if isinstance(listening, Mailbox) else errno.EINVAL)
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
        address = (
            None
            if end.dead and kernel.kind == 'kqueue'
            else (end.peer.local or '' if end.instant and end.peer else end.remote)
        )
        end.accepted = True
        if not end.instant:
            kernel.add_accepted(end)
        end.nodelay = listening.nodelay and kernel.nodelay_inherited
        end.references = 1
        kernel.open(fd, end)
        kernel.moved('accepted', fd, end.number)
        kernel.took(listening, 1)
        return SimSocket(kernel, self.family, self.type, fd), address

    def listen(self, backlog: int = 128) -> None:
        kernel = self.kernel
        kernel.call('listen', self._fd)
        file: File = self.file
        if isinstance(file, Mailbox):
            fail(errno.EOPNOTSUPP)
        if isinstance(file, Listening):
            file.backlog = backlog
            return
        if not isinstance(file, Unborn) or (self.family == AF_UNIX and not file.local):
            fail(errno.EINVAL)
        if self.family != AF_UNIX:
            if file.binding is None:
                host = self._anywhere() if file.local is None else file.local[0]
                kernel.bind(file, self.family, self.type, (host, 0))
            kernel.check_free(file.binding)
        deferred = bool(file.options.get((socket.IPPROTO_TCP, TCP_DEFER_ACCEPT)))
        listening = Listening(kernel, backlog, deferred)
        listening.nodelay = bool(file.options.get((socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        file.become(listening)
        kernel.replace(self._fd, listening)
        listening.key = kernel.keys.make('listener', listening.local)
        kernel.note('listening', self._fd, listening.number)
        listening.half_closed = self.family != AF_UNIX and bool(file.shut & WRITE)
        if self.family == AF_UNIX:
            listening.shut = file.shut
            listening.look()

    def connect(self, address: Any) -> None:
        error = self.connect_ex(address)
        if error:
            fail(error)

    def connect_ex(self, address: Any) -> int:
        kernel, falls = self.kernel, self.kernel.faults.falls
        if self.type == socket.SOCK_DGRAM:
            return self._connect_datagrams(address)
        error = kernel.failing('connect', self._fd)
        if error:
            return error
        if kernel.on_linux:
            error = kernel.refusal_at(address) if self.family == AF_UNIX else 0
            found = error or self._connect_again()
            if found is not None:
                return found
        file: File = self.file
        end = End(kernel, self.family, self.family == AF_UNIX, kernel.keys.make('client', address))
        file.become(end)
        end.remote, end.shut = address, file.shut
        if end.shut:
            end.look()  # it was shut down before it connects
        if not end.instant:
            try:
                kernel.set_remote(end, self.type, address)
            except OSError as exc:
                return exc.errno or 0
        if self.family != AF_UNIX and falls('connect.unreachable', self._fd, end.key):
            return int(kernel.faults.pick(UNREACHABLE))
        end.lingers = file.options.get(LINGER) != kernel.reset_on_close
        kernel.moved('connecting', self._fd, end.number)
        if end.instant:
            error = kernel.connect_unix(end)
            if error and kernel.on_linux:
                return error
        kernel.replace(self._fd, end)
        kernel.connects[self._fd] = end
        if end.instant:
            return error
        if falls('connect.refused', self._fd):
            kernel.after_latency(kernel.refuse, end)
        elif falls('connect.silent', self._fd) or kernel.is_silent(address):
            kernel.at(kernel.time + SILENCE, kernel.give_up, end)
        elif falls('connect.at_once', self._fd) and kernel.try_connect(end):
            return 0
        else:
            kernel.after_latency(kernel.try_connect, end)
        return errno.EWOULDBLOCK if kernel.kind == 'windows' else errno.EINPROGRESS

    def _connect_again(self) -> int | None:
        """Return what Linux reports for a socket that has connected before or listens; None: it can connect now."""
        file = self.file
        if isinstance(file, Listening):
            return errno.EINVAL if self.family == AF_UNIX else errno.EISCONN
        if not isinstance(file, End):
            return None
        if file.confirmed or file.instant:
            return errno.EISCONN
        if file.disconnecting:
            return errno.EINVAL
        if file.over:
            unborn = Unborn(self.kernel)
            self._has_port(file)
            file.become(unborn)
            host = file.named or self._anywhere()
            if unborn.binding is not None:
                unborn.binding.host = host
            unborn.local = address_for(self.family, host, file.local[1])
            self.kernel.replace(self._fd, unborn)
            return file.take_error() or errno.ECONNABORTED
        file.confirmed = file.connected
        return 0 if file.connected else errno.EALREADY

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not size:
            return b''  # Python makes no call
        kernel, falls = self.kernel, self.kernel.faults.falls
        kernel.call('recv', self._fd)
        end = self.file
        if isinstance(end, Mailbox):
            return self._receive(end, size, flags)[0]
        self._check_receiving(end)
        if not isinstance(end, End):
            return b''
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
        ended = end.ended_in and kernel.on_linux and not end.instant  # after an end of file, recv reports no error
        if end.error and not ended:
            fail(end.take_error())
        if end.ended_in or end.dead or end.shut & READ:
            kernel.moved('recv', self._fd, excerpt(b''))
            return b''
        raise BlockingIOError(errno.EAGAIN, 'simulated: nothing to read')

    def _check_receiving(self, end: Any) -> None:
        if isinstance(end, End) and (end.connected or end.error or (end.dead and self.kernel.on_linux)):
            return
        if self.family == AF_UNIX and self.kernel.on_linux:
            fail(errno.EINVAL)
        if isinstance(end, End) and self.kernel.on_linux:
            fail(errno.EAGAIN)  # it is still connecting
        if not (end.shut & READ and isinstance(end, Unborn)):
            fail(errno.ENOTCONN)

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
            return self._try_to_send(name, data if isinstance(data, bytes) else bytes(data))
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
            return self._post(end, data, None)
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
        linux = self.kernel.on_linux
        if not isinstance(end, End) or not end.connected:
            if not linux or self.family == AF_UNIX:
                fail(errno.ENOTCONN)
            if isinstance(end, End) and not end.dead:
                fail(errno.EAGAIN)  # it is still connecting
            fail((end.take_error() if isinstance(end, End) else 0) or errno.EPIPE)
        peer = end.peer
        lost = end.instant and peer is not None and (peer.gone or peer.dead or peer.shut & READ)
        if end.error and not (lost and linux):
            fail(end.take_error())
        if end.ended_out or end.dead or lost or end.shut & WRITE:
            end.reported.append(errno.EPIPE)
            fail(errno.EPIPE)

    def shutdown(self, how: int) -> None:
        kernel = self.kernel
        kernel.call('shutdown', self._fd)
        file = self.file
        ends = {socket.SHUT_RD: READ, socket.SHUT_WR: WRITE}.get(socket.SHUT_RD if not how else how, READ | WRITE)
        live = isinstance(file, End) and file.connected and not file.over
        if live or (isinstance(file, End) and file.instant and kernel.on_linux):
            kernel.moved('shutdown', self._fd, how)
            file.shut |= ends
            file.confirmed = True
            if ends & WRITE:
                file.end()
            file.look()
            if file.instant and file.peer is not None:
                file.peer.look()
            return
        if not kernel.on_linux:
            fail(errno.ENOTCONN)
        if isinstance(file, End):
            file.disconnecting = not file.confirmed
        self._shut_down_unconnected(file, ends)

    def _shut_down_unconnected(self, file: Any, ends: int) -> None:
        # Linux fails with ENOTCONN, but remembers the call.
        if isinstance(file, Listening) and self.family != AF_UNIX:
            if ends & READ:  # it no longer listens
                file.closed()
                self.kernel.release(file)
                unborn = Unborn(self.kernel)
                file.become(unborn)
                self.kernel.replace(self._fd, unborn)
            return
        file.shut |= ends
        if isinstance(file, Mailbox | Listening):
            file.look()
        if self.family != AF_UNIX and not (isinstance(file, Mailbox) and file.remote is not None):
            fail(errno.ENOTCONN)
