"""Types for annotations, apart from the reactor's own classes. Every module may import this module.

It is imported at run time, not only by type checkers, so that `typing.get_type_hints` finds these names in the module
that defines a method.
"""

from __future__ import annotations

from os import PathLike
from selectors import BaseSelector as BaseSelector
from socket import socket as socket
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from ssl import MemoryBIO as MemoryBIO
    from ssl import SSLContext as SSLContext
    from ssl import SSLError as SSLError
    from ssl import SSLObject as SSLObject
else:
    # Importing `ssl` takes as long as importing the whole reactor, and few programs need it.
    MemoryBIO = SSLContext = SSLError = SSLObject = Any

Ts = TypeVarTuple('Ts')  # the user's own arguments for a callback
Result = TypeVar('Result')

Buffer = bytes | bytearray | memoryview
StrPath = str | PathLike[str]
AnyPath = str | bytes | PathLike[str] | PathLike[bytes]


class HasFileno(Protocol):
    """An object with a descriptor, such as a file, or a socket of another library."""

    def fileno(self) -> int:
        """Return the number of the descriptor."""
        ...
