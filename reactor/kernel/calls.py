"""`Kernel`: every call to the operating system that is not a method of a socket.

It provides the clock, selectors, new sockets and pipes, name look-ups and socket files. Its base class `Processes`
provides threads, children, signals and forks. Nothing here knows the loop.

The indirection costs nothing where it matters: the loop looks up the clock and `select` once, and calls the methods of
sockets directly.
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
from collections.abc import Callable
from socket import socket as Socket
from typing import Any, Literal

from . import platforms
from .polling import EventSelector, EventSource, KeySource, can_report_numbers
from .processes import Processes
from .sockets import FileSocket, LeanSocket, PipeSocket

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ONLY_ERROR = 4  # `Kernel.readiness` returns this for a descriptor that only has an error to report
LOCK_TRIES, LOCK_PAUSE = 100, 0.01  # pause in seconds; another program binds and listens in less than one pause
ResolveFailure = socket.gaierror


class Kernel(Processes):
    """The real operating system. A simulated kernel has the same methods, with its own sockets and selectors."""

    # Differences between platforms. The reactor reads them here, because a simulated kernel may have other values.
    clock_step: float = platforms.step_of_waits(os.name, time.get_clock_info('monotonic').resolution)
    exclusive_address: int = platforms.SO_EXCLUSIVEADDRUSE
    nodelay_inherited: bool = platforms.NODELAY_INHERITED
    reset_on_close: bytes = platforms.RESET_ON_CLOSE
    reuse_address: bool = platforms.REUSE_ADDRESS
    # Errors which mean that a connect is in progress. EWOULDBLOCK is among them only on Windows. Elsewhere it equals
    # EAGAIN, which means that no port is left.
    connecting: frozenset[int] = frozenset(
        {errno.EINPROGRESS, errno.EALREADY, getattr(errno, 'WSAEWOULDBLOCK', errno.EINPROGRESS)}
    )

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def random_number(self) -> float:
        """Return a random number, at least 0 and below 1. The module `random` would take 5 ms to import."""
        return (int.from_bytes(os.urandom(7), 'big') >> 3) / (1 << 53)

    def selector(self) -> selectors.BaseSelector:
        """Make the best selector of this platform."""
        return EventSelector() if can_report_numbers() else selectors.DefaultSelector()

    def event_source(self, selector: selectors.BaseSelector) -> EventSource:
        """Return what the loop polls, to get the events of `selector`."""
        return selector if isinstance(selector, EventSelector) else KeySource(selector)

    def new_selector_like(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        """Make a selector of the same class as `selector`."""
        return type(selector)()

    def watches_files(self, selector: selectors.BaseSelector) -> bool:
        """Return whether `selector` may watch open files, and report a file whose descriptor other code has closed.

        Selectors that keep nothing in the kernel, such as `poll` and `select`, watch descriptor numbers.
        """
        return hasattr(selector, 'fileno')

    def room_of(self, selector: selectors.BaseSelector) -> Callable[[int], bool] | None:
        """Return a function that tests whether `selector` has room for a descriptor, or None if it always has.

        `select` has no room beyond FD_SETSIZE. The function is looked up once, because a method call would cost each
        new connection 0.5 % of its instructions.
        """
        if not isinstance(selector, selectors.SelectSelector):
            return None
        if os.name == 'posix':
            return platforms.FD_SETSIZE.__gt__
        return lambda fd: len(selector.get_map()) < platforms.FD_SETSIZE

    def is_open(self, fd: int) -> bool:
        """Return whether `fd` is an open descriptor of this process."""
        try:
            if os.name == 'posix':
                os.fstat(fd)
            else:
                socket.socket(fileno=fd).detach()  # fstat does not accept sockets on Windows
        except (OSError, ValueError, OverflowError):
            return False
        return True

    def readiness(self, fd: int, events: int) -> int:
        """Ask the kernel, without the selector, whether a descriptor is ready.

        Returns 0 if it is not ready: the selector's event was stale, or was for another descriptor that had this
        number. Returns ONLY_ERROR if the descriptor can neither be read nor written, but is reported because of an
        error, such as an unread error queue. Otherwise, and on platforms without `poll`, returns `events`.
        """
        if not platforms.HAS_POLL:
            return events
        poll = select.poll()
        poll.register(fd, (select.POLLIN if events & 1 else 0) | (select.POLLOUT if events & 2 else 0))
        try:
            found = poll.poll(0)
        except OSError:
            return events  # the kernel has no memory to find out
        if not found:
            return 0
        # Hang-ups and closed descriptors count as ready, because the next call with the descriptor returns or fails at
        # once.
        return ONLY_ERROR if found[0][1] & ~select.POLLPRI == select.POLLERR else events

    def received_memory(self, fd: int) -> int:
        """Return how many bytes of memory a socket uses for received data, error queue included; 0 if unknown."""
        try:
            sock = socket.socket(fileno=fd)
            try:
                return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, platforms.SO_MEMINFO, 4), sys.byteorder)
            finally:
                sock.detach()
        except (OSError, ValueError):
            return 0  # not a socket, or not Linux

    def never_blocks(self, fd: int) -> bool:
        """Return whether `fd` is a file or directory; those never block. Raises OSError when it is not open."""
        if os.name != 'posix':
            return False  # fstat does not accept sockets on Windows, and select accepts nothing else
        try:
            mode = os.fstat(fd).st_mode
        except OSError as exc:
            raise OSError(exc.errno, f'descriptor {fd} is not open') from None
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def socket(self, family: int, kind: int, proto: int = 0) -> Socket:
        """Make a non-blocking socket that children do not inherit."""
        sock = LeanSocket(family, kind, proto)
        sock.setblocking(False)
        return sock  # type: ignore[return-value]  # it has all the methods that the reactor uses

    def socketpair(self) -> tuple[Socket, Socket]:
        """Make two connected, non-blocking stream sockets."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        return ours, theirs

    def pipe(self, writing: bool) -> tuple[PipeSocket, PipeSocket]:
        """Make a pipe. Return our end, which is non-blocking, and the child's end.

        If `writing` is true, we write and the child reads; otherwise the child writes and we read.
        """
        if os.name != 'posix':
            raise OSError(errno.ENOTSUP, 'pipes of children cannot be watched on this platform; use files or DEVNULL')
        reader, writer = map(PipeSocket, os.pipe())
        ours, theirs = (writer, reader) if writing else (reader, writer)
        ours.setblocking(False)
        return ours, theirs

    def open_fd(self, fd: int, owner: Any, keep: bool) -> tuple[FileSocket, bool, bool]:
        """Return a socket for a descriptor of the user, and whether it can be read and written. See `FileSocket`.

        Raises PermissionError if a selector cannot wait for it, and ValueError if it is a socket.
        """
        if fcntl is None:
            raise OSError(errno.ENOTSUP, 'only sockets can be watched on this platform')
        if self.never_blocks(fd):
            raise PermissionError
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ValueError(f'fd must be a pipe, a terminal or a FIFO, and descriptor {fd} is a socket; use adopt()')
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
        return FileSocket(fd, owner, keep, mode), mode != os.O_WRONLY, mode != os.O_RDONLY

    def getaddrinfo(self, host: str | None, port: int, family: int, kind: int, flags: int = 0) -> list[Any]:
        """Return the addresses of a name. Blocks, unless `flags` has AI_NUMERICHOST."""
        # Pass bytes: a str, even a numeric address, is encoded with the idna codec, whose import costs a megabyte.
        plain = host.encode() if host is not None and host.isascii() else host
        return socket.getaddrinfo(plain, port, family, kind, 0, flags)

    def pack_address(self, family: int, host: str) -> bytes:
        """Return a numeric address as bytes. Raises OSError if it is not an address of `family`."""
        return socket.inet_pton(family, host)

    def unpack_address(self, family: int, packed: bytes) -> str:
        """Return a numeric address from its bytes."""
        return socket.inet_ntop(family, packed)

    def interface_index(self, name: str) -> int:
        """Return the number of a network interface. Raises OSError if there is none with that name."""
        return socket.if_nametoindex(name)

    def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        """Return the names of the host and port of a numeric address. Blocks."""
        return socket.getnameinfo(address, flags)

    def has_clients(self, sock: Any) -> bool:
        """Return whether clients wait in the accept queue of a listening socket."""
        if sock.fileno() < 0:
            return False  # other code has closed it
        if os.name != 'posix':
            return bool(select.select([sock], [], [], 0)[0])
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        try:
            return any(events & select.POLLIN for _, events in poll.poll(0))
        except OSError:
            return True  # the kernel has no memory to find out; the caller asks again later

    def drop_new_connections(self, sock: Any) -> bool:
        """Drop the SYN of each new client of a listening socket. Return whether that is possible: on Linux, for TCP.

        Without this, a client that connects after the last check of the queue and before the close would be reset. A
        filter on the socket drops the client's first segment instead; the client sends it again, and is refused. All
        other segments pass, because they complete handshakes that have begun. So a client that already sees an open
        connection still enters the queue.
        """
        if sock.family == platforms.AF_UNIX:
            return False  # a filter can be attached to a Unix socket, but is never used
        program = array('B', b''.join(struct.pack('HBBI', *step) for step in platforms.DROP_FIRST_SEGMENTS))
        where = struct.pack('HP', len(platforms.DROP_FIRST_SEGMENTS), program.buffer_info()[0])
        try:
            sock.setsockopt(socket.SOL_SOCKET, platforms.SO_ATTACH_FILTER, where)
        except OSError:
            return False
        return True

    def has_bytes(self, sock: Any) -> bool:
        """Return whether a connected socket has received bytes that have not been read yet."""
        try:
            if fcntl is None:
                return bool(sock.recv(1, socket.MSG_PEEK))
            # Do not peek here: that would consume the error of a reset, and the next recv would report a clean end.
            return any(fcntl.ioctl(sock.fileno(), platforms.FIONREAD, bytes(4)))
        except (OSError, ValueError):
            return False  # the connection is reset or closed, which the next read reports

    # Whether `tcp_counts` works. Platforms other than Linux count differently.
    counts_tcp: bool = sys.platform == 'linux'

    def tcp_counts(self, sock: Any) -> tuple[int, int, int]:
        """Return (bytes received, bytes acknowledged by the peer, bytes not sent yet) of a TCP connection.

        Raises OSError if the connection no longer exists, or is not TCP.
        """
        # Fields of struct tcp_info. The struct of an older Linux is shorter, and the fields that it lacks count as 0.
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        order: Literal['little', 'big'] = sys.byteorder
        received, acked = int.from_bytes(info[128:136], order), int.from_bytes(info[120:128], order)
        return received, acked, int.from_bytes(info[144:148], order)

    def close_fd(self, fd: int) -> None:
        """Close a descriptor that no object owns."""
        os.close(fd)

    def sleep(self, seconds: float) -> None:
        """Block the thread. Used only where the loop cannot go on, such as when the kernel has no memory for a byte."""
        time.sleep(seconds)

    def identity(self, fd: int) -> Any:
        """Return the device and inode of an open file, which distinguish it from a later file with the same number.

        Returns None if `fd` is not open.
        """
        try:
            found = os.fstat(fd)
        except (OSError, ValueError):
            # On Windows fstat does not accept sockets, so only the number is compared.
            return fd if os.name != 'posix' and self.is_open(fd) else None
        return found.st_dev, found.st_ino

    def write(self, fd: int, data: bytes) -> int:
        """Write to a descriptor of other code: the wakeup descriptor that was installed before ours."""
        return os.write(fd, data)

    def strerror(self, error: int) -> str:
        """Return the message of an error number."""
        return os.strerror(error)

    def socket_file(self, path: str | bytes) -> tuple[int, int] | None:
        """Return the device and inode of the socket file at `path`, or None if nothing is there.

        Raises FileExistsError for anything that is not a socket.
        """
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(
                f'{os.fsdecode(path)!r} exists and is not a socket: it was left alone; choose another path'
            )
        return found.st_dev, found.st_ino

    def absolute_path(self, path: str | bytes) -> str | bytes:
        """Return the absolute path of a socket file, which stays valid when the program changes its directory."""
        return os.path.abspath(path)

    def lock_folder(self, path: str | bytes) -> int:
        """Lock the directory of a socket file against other programs that want to listen there: see `listening_unix`.

        Returns a descriptor; closing it unlocks the directory. No file is made. Returns -1 if the directory cannot be
        locked, or if another program keeps it locked for about a second.
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
        """Remove a socket file, if it still exists."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def find_path(self, path: Any) -> tuple[str, str, str | None]:
        """Return a path as text, the real directory to watch, and the name to watch in it (None: the whole directory).

        Raises FileNotFoundError when nothing is there, and PermissionError when the directory cannot be read.
        """
        given = os.fsdecode(path)
        if stat.S_ISDIR(os.stat(given).st_mode):
            folder, name = os.path.realpath(given), None
        else:
            folder, name = os.path.split(given)
            folder = os.path.realpath(folder)  # follows links, as the operating system does
        if not os.access(folder, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return given, folder, name

    def chmod(self, path: str | bytes, mode: int) -> None:
        """Set the permissions of a socket file."""
        os.chmod(path, mode)

    def size_of_file(self, fd: int) -> int:
        """Return the size of an open file in bytes. Raises ValueError unless it is a regular file."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError('only regular files can be sent: reading anything else could block the loop')
        return found.st_size

    def copy_of_file(self, fd: int) -> int:
        """Duplicate the descriptor of an open file, so that the user may close theirs."""
        return os.dup(fd)

    def sendfile(self, sock: Socket, fd: int, offset: int, count: int) -> int:
        """Send bytes of a file without copying them. Raises OSError (EINVAL) if the bytes have to be read instead."""
        # The number of a simulated socket means nothing to the operating system.
        if not platforms.HAS_SENDFILE or not isinstance(sock, socket.SocketType):
            raise OSError(errno.EINVAL, 'sendfile is not available')
        return os.sendfile(sock.fileno(), fd, offset, count)

    def read_file(self, fd: int, offset: int, count: int) -> bytes:
        """Read up to `count` bytes of a file. Blocks while the disk is read."""
        if hasattr(os, 'pread'):
            return os.pread(fd, count, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)
