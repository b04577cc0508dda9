"""Parts of files that wait to be sent, without a copy of their bytes in our memory.

Owns a descriptor for each part, a duplicate of the user's, and the ways to send from it. Knows no stream and no queue.
The rule: a part lives exactly as long as somebody holds it, and its descriptor with it, so whatever ends a connection
closes its files too; one call sends a bounded number of bytes, and none of them stays in memory.
"""

from __future__ import annotations

from errno import EBADF, EINVAL, EIO, ENOSYS, ENOTSOCK, EOPNOTSUPP, EOVERFLOW, ESPIPE

from ..errors import SendFileError
from ..kernel import send_first
from ..loop.checks import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

    from ..kernel import Kernel

# One call, and so one connection in one turn: what takes about as long as a few recvs, so that nobody starves.
FILE_BYTES_PER_TURN = 262144
READ_FILE_SIZE = 65536  # what is read where sendfile cannot be used: in memory for one call only
READ_BELOW = 4096  # so little is read at the call: that costs less than another descriptor (no less: see Writer.extend)

# What sendfile says where the system, the filesystem or the socket refuses, or the file fails: reading decides then.
# EBADF does not say which of the two descriptors was closed by other code.
REFUSED = {EBADF, EINVAL, EIO, ENOSYS, ENOTSOCK, EOPNOTSUPP, EOVERFLOW, ESPIPE}


class FilePart:
    """`count` bytes of a file from `offset` on. `sent` of them went out already, as its writer knows."""

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
            pass  # somebody else has closed it

    def send_some(self, sock: socket) -> int:
        """Send some of what is left; returns how much. OSError of the socket, `SendFileError` for the file."""
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
            raise self._failed('it became shorter while it was sent')
        return sent

    def read(self, size: int) -> bytes:
        """The next bytes, `size` at most, for who has to change them before they are sent (TLS)."""
        why = 'it became shorter while it was sent'
        data = b''
        try:
            data = self._kernel.read_file(self._fd, self._offset + self.sent, min(self._count - self.sent, size))
        except OSError as exc:
            why = f'it cannot be read, {exc.strerror}'
        if not data:
            raise self._failed(why)  # not from inside the handler: the error would keep this frame, and the descriptor
        return data

    def _failed(self, why: str) -> SendFileError:
        return SendFileError(
            f'{self._name}: {why}; the last {self._count - self.sent} of {self._count} bytes are missing, and the '
            'connection was reset. Replace files that are being served, do not write into them'
        )


def file_part(kernel: Kernel, file: Any, offset: int, count: int | None) -> FilePart | bytes:
    """What `send_file` is to send; a few bytes as such. Raises as `Stream.send_file`."""
    if not hasattr(file, 'fileno'):
        raise TypeError(f'send_file takes an open file with a descriptor, not {shown(file)}')
    for name, number in ('offset', offset), ('count', 0 if count is None else count):
        if type(number) is not int:
            raise TypeError(f'{name} is a number of bytes, not {shown(number)}')
        if number < 0:
            raise ValueError(f'{name} is a number of bytes, at least 0, not {number}')
    fd, label = file.fileno(), f'file {getattr(file, "name", file)!r}'
    size = kernel.size_of_file(fd)
    wanted = size - offset if count is None else count
    if wanted < 0 or offset + wanted > size:
        raise ValueError(
            f'{label} has {size} bytes: cannot send {"the rest" if count is None else shown(count)} from '
            f'offset {shown(offset)} on'
        )
    if wanted >= READ_BELOW:
        return FilePart(kernel, kernel.copy_of_file(fd), offset, wanted, label)
    data = kernel.read_file(fd, offset, wanted) if wanted else b''
    if len(data) < wanted:
        raise SendFileError(f'{label} became shorter while it was read: nothing was sent')
    return data
