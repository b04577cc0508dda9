"""What annotations name besides the reactor's own classes, for every room.

It is imported when a program runs, and not only by type checkers, so that `typing.get_type_hints` finds these names
in the module of the method that it is asked about.
"""

from __future__ import annotations

from os import PathLike
from selectors import BaseSelector as BaseSelector
from socket import socket as socket
from typing import Any, Protocol, TypeVar, TypeVarTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext as SSLContext
else:
    SSLContext = Any  # `ssl` takes as long to import as all of the reactor, and few programs need it

Ts = TypeVarTuple('Ts')  # the arguments that a callback is given besides what it reports
Result = TypeVar('Result')

Buffer = bytes | bytearray | memoryview
StrPath = str | PathLike[str]
AnyPath = str | bytes | PathLike[str] | PathLike[bytes]


class HasFileno(Protocol):
    """A file, or a socket of another library: something that has a descriptor."""

    def fileno(self) -> int:
        """The number of its descriptor."""
        ...
