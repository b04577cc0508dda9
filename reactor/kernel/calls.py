"""Every call to the operating system that is not a socket's method: `Kernel`.

Has the clock, the selectors, the making of sockets and pipes, name look-up and socket files. Its base `Processes` has
threads, children, signals and forks. Nothing here knows the loop.

It costs nothing where it matters: the loop binds the clock and `select` once, and sockets are used directly.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import stat
import struct
import sys
import time
from array import array

from .platforms import (
    AF_UNIX,
    DROP_FIRST_SEGMENTS,
    FD_SETSIZE,
    FIONREAD,
    HAS_POLL,
    HAS_SENDFILE,
    NODELAY_INHERITED,
    RESET_ON_CLOSE,
    REUSE_ADDRESS,
    SO_ATTACH_FILTER,
    SO_EXCLUSIVEADDRUSE,
    SO_MEMINFO,
    step_of_waits,
)
from .processes import Processes
from .sockets import LeanSocket, PipeSocket

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as Socket
    from typing import Any, Literal

ONLY_ERROR = 4  # beside READ and WRITE, see `Kernel.readiness`
LOCK_TRIES, LOCK_PAUSE = 100, 0.01  # seconds in between: another program binds and listens in less than one of them
ResolveFailure = socket.gaierror


class Kernel(Processes):
    """The real operating system. A simulated one has the same methods, with sockets and selectors of its own."""

    # What differs between platforms, for parts of the reactor that must behave as on the kernel they were given.
    clock_step: float = step_of_waits(os.name, time.get_clock_info('monotonic').resolution)
    exclusive_address = SO_EXCLUSIVEADDRUSE
    nodelay_inherited = NODELAY_INHERITED
    reset_on_close = RESET_ON_CLOSE
    reuse_address = REUSE_ADDRESS
    # What a connect says that has begun. EWOULDBLOCK is this on Windows alone; for others it is EAGAIN, no port left.
    connecting: frozenset[int] = frozenset(
        {errno.EINPROGRESS, errno.EALREADY, getattr(errno, 'WSAEWOULDBLOCK', errno.EINPROGRESS)}
    )

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def selector(self) -> selectors.BaseSelector:
        """The best selector of this platform."""
        return selectors.DefaultSelector()

    def new_selector_like(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        """A new selector of the same kind."""
        return type(selector)()

    def room_of(self, selector: selectors.BaseSelector) -> Callable[[int], bool] | None:
        """Return a function that says whether `selector` can watch a descriptor as well, None when it always can.

        `select` cannot, beyond FD_SETSIZE. It is asked for once, because a call for each new connection costs it 0.5 %
        of its instructions.
        """
        if not isinstance(selector, selectors.SelectSelector):
            return None
        if os.name == 'posix':
            return FD_SETSIZE.__gt__
        return lambda fd: len(selector.get_map()) < FD_SETSIZE

    def is_open(self, fd: int) -> bool:
        """Whether `fd` is an open descriptor of this process."""
        try:
            if os.name == 'posix':
                os.fstat(fd)
            else:
                socket.socket(fileno=fd).detach()  # fstat knows no sockets there
        except (OSError, ValueError, OverflowError):
            return False
        return True

    def readiness(self, fd: int, events: int) -> int:
        """Whether the kernel itself reports a descriptor as ready, asked without the selector.

        0: it does not, so the selector's report was stale, or was about another descriptor that had this number.
        ONLY_ERROR: it can neither be read nor written, but it is reported for an error, such as an unread error queue.
        Else `events`, also where there is no `poll` to ask.
        """
        if not HAS_POLL:
            return events
        poll = select.poll()
        poll.register(fd, (select.POLLIN if events & 1 else 0) | (select.POLLOUT if events & 2 else 0))
        try:
            found = poll.poll(0)
        except OSError:
            return events  # no memory to tell
        if not found:
            return 0
        # A hang-up lets a read return; a number that is not open has its call fail, which tells so.
        return ONLY_ERROR if found[0][1] & ~select.POLLPRI == select.POLLERR else events

    def received_memory(self, fd: int) -> int:
        """How many bytes of memory hold what a socket has received, error queue included; 0 if that is not known."""
        try:
            sock = socket.socket(fileno=fd)
            try:
                return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4), sys.byteorder)
            finally:
                sock.detach()
        except (OSError, ValueError):
            return 0  # not a socket, or not Linux

    def never_blocks(self, fd: int) -> bool:
        """Whether `fd` is a file or a directory, for which there is no waiting. OSError when it is not open."""
        if os.name != 'posix':
            return False  # fstat knows no sockets there, and select takes nothing else
        try:
            mode = os.fstat(fd).st_mode
        except OSError as exc:
            raise OSError(exc.errno, f'descriptor {fd} is not open') from None
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def socket(self, family: int, kind: int, proto: int = 0) -> Socket:
        """A new socket, not blocking, not inherited by children."""
        sock = LeanSocket(family, kind, proto)
        sock.setblocking(False)
        return sock  # type: ignore[return-value]  # all that is used of a socket, it has

    def socketpair(self) -> tuple[Socket, Socket]:
        """Two connected stream sockets, not blocking."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        return ours, theirs

    def pipe(self, writing: bool) -> tuple[PipeSocket, PipeSocket]:
        """A pipe as (our end, not blocking; the end for a child); `writing` says which way ours goes."""
        if os.name != 'posix':
            raise OSError(errno.ENOTSUP, 'pipes of children cannot be watched on this platform; use files or DEVNULL')
        reader, writer = map(PipeSocket, os.pipe())
        ours, theirs = (writer, reader) if writing else (reader, writer)
        ours.setblocking(False)
        return ours, theirs

    def getaddrinfo(self, host: str | None, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        """The addresses of a name. Blocks, unless `flags` has AI_NUMERICHOST."""
        # A str is put through the idna codec, which costs its import and a megabyte even for numbers; bytes are not.
        plain = host.encode() if host is not None and host.isascii() else host
        return socket.getaddrinfo(plain, port, family, kind, 0, flags)

    def pack_address(self, family: int, host: str) -> bytes:
        """The bytes of a numeric address; OSError when it is none of `family`."""
        return socket.inet_pton(family, host)

    def unpack_address(self, family: int, packed: bytes) -> str:
        """The numeric address that these bytes are."""
        return socket.inet_ntop(family, packed)

    def interface_index(self, name: str) -> int:
        """The number of a network interface; OSError when there is none of that name."""
        return socket.if_nametoindex(name)

    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        """The names of the host and the port of a numeric address. Blocks."""
        return socket.getnameinfo(address, flags)

    def has_clients(self, sock: Any) -> bool:
        """Whether clients wait in the queue of a listening socket."""
        if sock.fileno() < 0:
            return False  # somebody else has closed it
        if os.name != 'posix':
            return bool(select.select([sock], [], [], 0)[0])
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        try:
            return any(events & select.POLLIN for _, events in poll.poll(0))
        except OSError:
            return True  # no memory to tell; the next time, perhaps

    def drop_new_connections(self, sock: Any) -> bool:
        """Let no new client into the queue of a listening socket; return whether the system can. Linux can, for TCP.

        A client that comes between the last look into a queue and its close would be reset. A filter at the socket
        drops the first segment of each new client, which sends it again and is refused. All other segments pass: they
        end the handshakes that have begun, and a client that is connected, as it sees it, still gets into the queue.
        """
        if sock.family == AF_UNIX:
            return False  # its filter is attached and never asked
        program = array('B', b''.join(struct.pack('HBBI', *step) for step in DROP_FIRST_SEGMENTS))
        where = struct.pack('HP', len(DROP_FIRST_SEGMENTS), program.buffer_info()[0])
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, where)
        except OSError:
            return False
        return True

    def has_bytes(self, sock: Any) -> bool:
        """Whether bytes wait to be read in a connected socket."""
        try:
            if fcntl is None:
                return bool(sock.recv(1, socket.MSG_PEEK))
            # A peek would take the error of a reset, and the next recv would report a clean end.
            return any(fcntl.ioctl(sock.fileno(), FIONREAD, bytes(4)))
        except (OSError, ValueError):
            return False  # it is broken or closed, which reading reports

    # Whether it counts the bytes of a TCP connection; others have such counts, elsewhere and of another kind.
    counts_tcp: bool = sys.platform == 'linux'

    def tcp_counts(self, sock: Any) -> tuple[int, int, int]:
        """(bytes that have come, bytes that the peer has acknowledged, bytes not sent yet) of a TCP connection.

        OSError when it is no more, or not TCP.
        """
        # The fields of struct tcp_info; an older Linux has a shorter one, and what it has not counts as 0.
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        order: Literal['little', 'big'] = sys.byteorder
        received, acked = int.from_bytes(info[128:136], order), int.from_bytes(info[120:128], order)
        return received, acked, int.from_bytes(info[144:148], order)

    def close_fd(self, fd: int) -> None:
        """Close a descriptor that has no object of its own."""
        os.close(fd)

    def sleep(self, seconds: float) -> None:
        """Block; where there is nothing else to do: at the end of the loop, or without memory for one byte."""
        time.sleep(seconds)

    def identity(self, fd: int) -> Any:
        """What tells an open file from a later one with the same number: device and inode. None when it is not open."""
        try:
            found = os.fstat(fd)
        except (OSError, ValueError):
            # On Windows fstat knows no sockets, and the number has to do.
            return fd if os.name != 'posix' and self.is_open(fd) else None
        return found.st_dev, found.st_ino

    def write(self, fd: int, data: bytes) -> int:
        """Write to a descriptor that is not ours (another library's wakeup descriptor)."""
        return os.write(fd, data)

    def strerror(self, error: int) -> str:
        """What an error number means, in words."""
        return os.strerror(error)

    def socket_file(self, path: str | bytes) -> tuple[int, int] | None:
        """Device and inode of the socket at `path`, None when nothing is there. Anything else there is an error."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(
                f'{os.fsdecode(path)!r} exists and is not a socket: it was left alone, choose another path'
            )
        return found.st_dev, found.st_ino

    def absolute_path(self, path: str | bytes) -> str | bytes:
        """The path of a socket file from the root, which stays the same when the program changes its directory."""
        return os.path.abspath(path)

    def lock_folder(self, path: str | bytes) -> int:
        """Lock the directory of a socket file against other programs that want to listen there: see `listening_unix`.

        Returns a descriptor; closing it unlocks. No file is made. Returns -1 where the directory cannot be locked, or
        where another program keeps it locked for about a second.
        """
        if fcntl is None:
            return -1
        try:
            folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return -1
        try:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return folder
                except BlockingIOError:
                    self.sleep(LOCK_PAUSE)
        except OSError:
            pass  # a file system without locks
        except BaseException:
            os.close(folder)
            raise
        os.close(folder)
        return -1

    def unlink(self, path: str | bytes) -> None:
        """Remove a socket file; that it is gone already is fine."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def find_path(self, path: Any) -> tuple[str, str, str | None]:
        """Where a path is: as text, the real directory to watch for it, and the name in it, None for all of it.

        FileNotFoundError when nothing is there, PermissionError when its directory cannot be read.
        """
        given = os.fsdecode(path)
        if stat.S_ISDIR(os.stat(given).st_mode):
            folder, name = os.path.realpath(given), None
        else:
            folder, name = os.path.split(given)
            folder = os.path.realpath(folder)  # as the system does: what follows a link is not what its text says
        if not os.access(folder, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return given, folder, name

    def chmod(self, path: str | bytes, mode: int) -> None:
        """Set the permissions of a socket file."""
        os.chmod(path, mode)

    def size_of_file(self, fd: int) -> int:
        """The size of an open file in bytes; ValueError unless it is a regular file."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError('only regular files can be sent: reading anything else could block the loop')
        return found.st_size

    def copy_of_file(self, fd: int) -> int:
        """A descriptor of our own for an open file, so that the user may close theirs."""
        return os.dup(fd)

    def sendfile(self, sock: Socket, fd: int, offset: int, count: int) -> int:
        """Send bytes of a file without copying them. EINVAL where that cannot be: they have to be read then."""
        # A simulated socket has a number that means nothing to the system.
        if not HAS_SENDFILE or not isinstance(sock, socket.SocketType):
            raise OSError(errno.EINVAL, 'no sendfile here')
        return os.sendfile(sock.fileno(), fd, offset, count)

    def read_file(self, fd: int, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a file; blocks as long as the disk does."""
        if hasattr(os, 'pread'):
            return os.pread(fd, count, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)
