"""Parts of files that are waiting to be sent. Their bytes are not copied into memory.

Each `FilePart` owns a duplicate of the user's descriptor, and closes the duplicate when the part is freed. So a
connection that ends also closes its files. One call sends a limited number of bytes.
"""

from __future__ import annotations

from errno import EBADF, EINVAL, EIO, ENOSYS, ENOTSOCK, EOPNOTSUPP, EOVERFLOW, ESPIPE
from typing import Any

from ..errors import SendFileError
from ..hints import socket
from ..kernel import Kernel
from ..kernel.sockets import send_first
from ..loop.checks import shown

# The most bytes that one call sends, and therefore that one connection sends per turn. This takes about as long as a
# few recvs, so other connections do not starve.
FILE_BYTES_PER_TURN = 262144
READ_FILE_SIZE = 65536  # bytes read at once where sendfile cannot be used; they are in memory for one call only
# A part with fewer bytes is read in `send_file`, which costs less than another descriptor. This must not be less than
# the writer's GATHER_BELOW: `Writer.extend` relies on that.
READ_BELOW = 4096

# Errors of sendfile which mean that the kernel, the filesystem or the socket does not support it, or that the file has
# failed. Reading the file then shows which. EBADF is included because it does not say whether other code has closed
# the descriptor of the file or of the socket.
REFUSED = {EBADF, EINVAL, EIO, ENOSYS, ENOTSOCK, EOPNOTSUPP, EOVERFLOW, ESPIPE}


class FilePart:
    """`count` bytes of a file, beginning at `offset`. The writer sets `sent` to the number of bytes already sent."""

    __slots__ = ('_count', '_fd', '_kernel', '_name', '_offset', '_refused', 'sent')

    def __init__(self, kernel: Kernel, fd: int, offset: int, count: int, name: str) -> None:
        self._kernel = kernel
        self._fd = fd
        self._offset = offset
        self._count = count
        self._name = name
        self._refused = False
        self.sent: int = 0

    def __len__(self) -> int:
        return self._count

    def __del__(self) -> None:
        try:
            self._kernel.close_fd(self._fd)
        except OSError:
            pass  # other code has closed it

    def send_some(self, sock: socket) -> int:
        """Send some of the remaining bytes and return how many.

        Raises OSError for an error of the socket, and SendFileError for an error of the file.
        """
        sent = None
        if not self._refused:
            try:
                sent = self._kernel.sendfile(
                    sock, self._fd, self._offset + self.sent, min(self._count - self.sent, FILE_BYTES_PER_TURN)
                )
            except OSError as exc:
                if exc.errno not in REFUSED:
                    raise
                self._refused = True
        if sent is None:
            return send_first(sock, [self.read(READ_FILE_SIZE)])
        if not sent:
            raise self._failed('it became shorter while it was being sent')
        return sent

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`. Used for TLS, and where `sendfile` cannot be used."""
        why = 'it became shorter while it was being sent'
        data = b''
        try:
            data = self._kernel.read_file(self._fd, self._offset + self.sent, min(self._count - self.sent, size))
        except OSError as exc:
            why = f'it cannot be read, {exc.strerror}'
        if not data:
            # Raised outside the handler: otherwise the error would keep this frame alive, and the frame would keep the
            # descriptor open.
            raise self._failed(why)
        return data

    def _failed(self, why: str) -> SendFileError:
        return SendFileError(
            f'{self._name}: {why}; the last {self._count - self.sent} of {self._count} bytes were not sent, and the '
            'connection was reset. To replace a file that is being served, use os.replace() instead of writing to it'
        )


def file_part(kernel: Kernel, file: Any, offset: int, count: int | None) -> FilePart | bytes:
    """Return the part of a file that `send_file` sends, or its bytes if they are few.

    Raises the same errors as `send_file`.
    """
    if not hasattr(file, 'fileno'):
        raise TypeError(f'send_file() takes an open file with a descriptor, not {shown(file)}')
    for name, number in ('offset', offset), ('count', 0 if count is None else count):
        if type(number) is not int:
            raise TypeError(f'{name} must be a number of bytes, not {shown(number)}')
        if number < 0:
            raise ValueError(f'{name} must be a number of bytes, at least 0, not {number}')
    fd, label = file.fileno(), f'file {getattr(file, "name", file)!r}'
    size = kernel.size_of_file(fd)
    wanted = size - offset if count is None else count
    if wanted < 0 or offset + wanted > size:
        raise ValueError(
            f'{label} has {size} bytes: cannot send {"the rest" if count is None else f"{shown(count)} bytes"} '
            f'from offset {shown(offset)}'
        )
    if wanted >= READ_BELOW:
        return FilePart(kernel, kernel.copy_of_file(fd), offset, wanted, label)
    data = kernel.read_file(fd, offset, wanted) if wanted else b''
    if len(data) < wanted:
        raise SendFileError(f'{label} became shorter while it was being read; nothing was sent')
    return data
