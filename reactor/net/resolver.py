"""Names to addresses, off the loop's thread.

Owns the translation of what `getaddrinfo` says. Knows no connection. The rule: the system's resolver is asked, with
all its files and services, in a thread; an address that is written in numbers needs neither.
"""

from __future__ import annotations

from socket import SOCK_STREAM

from ..errors import ResolveError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..kernel import Kernel
    from ..loop.loop import Loop
    from ..loop.threads import ThreadCall
    from .addresses import Address


def look_up(
    loop: Loop,
    kernel: Kernel,
    host: str,
    port: int,
    family: int,
    on_done: Callable[[list[Address] | None, Exception | None], object],
) -> ThreadCall:
    """Call `on_done(addresses, error)` in the loop, one of them None; close the returned handle to cancel."""

    def done(found: Any, error: BaseException | None) -> None:
        if error is None and found:
            on_done([(family, address) for family, _, _, _, address in found], None)
        else:
            reason = error or 'it has no address'
            on_done(None, ResolveError(f'cannot look up {host!r}: {reason}; check the name and the network'))

    return loop.run_in_thread(kernel.getaddrinfo, host, port, family, SOCK_STREAM, on_done=done)
