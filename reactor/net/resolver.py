"""Look names up, and find the names of addresses, without blocking the loop.

A look-up runs in a thread and uses the operating system's resolver, with all its files and services. A numeric address
needs no look-up. A look-up cannot be stopped: after a timeout or `close` its answer is dropped, but it occupies one of
the few threads until the resolver returns.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import NI_NAMEREQD, NI_NUMERICSERV, SOCK_STREAM
from typing import TYPE_CHECKING, Any

from ..errors import EXHAUSTION, ResolveError, ResolveTimeout
from ..kernel import Kernel
from ..loop.checks import callback, seconds, shown
from ..loop.threads import ThreadCall
from ..loop.timers import Timer
from ..loop.watcher import Handle
from .addresses import Address, check_family, check_host, numeric

if TYPE_CHECKING:
    from ..callbacks import Loop, OnName, OnResolved


class LookUp(Handle):
    """A look-up under way, returned by `resolve` and `resolve_address`.

    `close` cancels it: `on_done` is not called. If a thread is already working on it, the answer is dropped.

    Attributes:
        name: The name or the address to look up.
        timeout: The time limit in seconds, or None.
    """

    __slots__ = ('_call', '_timer', 'name', 'on_done', 'timeout')

    leads_to: tuple[tuple[str, str], ...] = (('handle_addresses', 'on_done'), ('handle_answer', 'on_done'))

    def __init__(self, loop: Loop, name: str, on_done: Callable[[Any, Any], object], timeout: float | None) -> None:
        self.loop = loop
        self.since: float = loop.now
        self.name: str = name
        self.on_done: Callable[[Any, Any], object] | None = on_done
        self.timeout: float | None = timeout
        self._call: ThreadCall | None = None
        self._timer: Timer | None = None

    def begin(self, fn: Callable[..., ThreadCall | None], *args: Any) -> None:
        """Start the look-up with `fn(*args)`, which may return a call in a thread (internal)."""
        loop = self.loop
        try:
            if self.timeout is not None:  # unreferenced, because the look-up itself keeps the loop running
                self._timer = loop.timers.unreferenced_later(self.timeout, LookUp._timed_out, self)
            self._call = call = fn(*args)
            if call is not None:
                call.unref()
            loop.watchers.park(self)  # parked last: a look-up that could not begin must not keep the loop running
        except BaseException:
            self.on_done = None  # an answer that still arrives is dropped
            raise

    def handle_addresses(self, addresses: list[Address] | None, error: Exception | None) -> None:
        """Called in the loop with the addresses of a name; duplicates are removed."""
        found = None if addresses is None else list(dict.fromkeys([address[0] for _, address in addresses]))
        self.handle_answer(found, error)

    def handle_answer(self, result: Any, error: Exception | None) -> None:
        """Called in the loop with the result or the error."""
        on_done = self.on_done
        self.close()
        if on_done is not None:
            try:
                on_done(result, error)
            except EXHAUSTION as exc:
                if exc.__traceback__.tb_next is None:  # type: ignore[union-attr]
                    self.on_done = on_done  # the callback was not called: the loop calls this method again
                raise

    @property
    def closed(self) -> bool:
        return self.on_done is None

    def close(self) -> None:
        self.loop.guard.check_thread()
        if self.on_done is not None:
            self.loop.watchers.remove(self)  # done first, because this step may run out of memory or stack
            if self._timer is not None:
                self._timer.cancel()
            if self._call is not None:
                self._call.close()
            self.on_done = self._timer = self._call = None

    def waits_for(self) -> str:
        return f'an answer about {self.name!r}'

    def __repr__(self) -> str:
        return f'<LookUp {self.name!r}{" closed" if self.closed else ""}>'

    def _timed_out(self) -> None:
        self._timer = None  # a timer must not be cancelled in its own call: the loop may have to repeat that call
        message = f'cannot look up {self.name!r}: no answer within {self.timeout:g} s'
        self.handle_answer(None, ResolveTimeout(f'{message}; check the network and the name servers'))


def resolve(loop: Loop, kernel: Kernel, host: str, family: int, on_done: OnResolved, timeout: float | None) -> LookUp:
    """Look a name up and call `on_done(addresses, error)`, with the addresses as str; see `Reactor.resolve`."""
    if check_host(host) is None:
        raise ValueError('resolve() needs a host, not None')
    check_family(family)
    timeout = _check_look_up(loop, on_done, timeout)
    lookup = LookUp(loop, host, on_done, timeout)
    addresses = numeric(kernel, host, 0, family)
    if addresses:
        lookup.begin(loop.completions.append, (lookup, LookUp.handle_addresses, (addresses, None)))
    else:
        lookup.begin(look_up, loop, kernel, host, 0, family, lookup.handle_addresses)
    return lookup


def resolve_address(
    loop: Loop, kernel: Kernel, address: str | tuple[Any, ...], on_done: OnName, timeout: float | None
) -> LookUp:
    """Find the name of `address` and call `on_done(name, error)`; see `Reactor.resolve_address`."""
    host = address[0] if isinstance(address, tuple) and address else address
    if not isinstance(host, str):
        raise TypeError(f'address must be a str, or a tuple such as (host, port), not {shown(address)}')
    timeout = _check_look_up(loop, on_done, timeout)
    found = numeric(kernel, host, 0) if check_host(host) else []
    if not found:
        raise ValueError(f'address must be numeric, such as "192.0.2.1", not {host!r}; use resolve() for a name')
    lookup = LookUp(loop, host, on_done, timeout)
    lookup.begin(look_up_name, loop, kernel, host, found[0][1], lookup.handle_answer)
    return lookup


def _check_look_up(loop: Loop, on_done: object, timeout: float | None) -> float | None:
    callback('on_done', on_done, '(result, error)')
    loop.guard.check()
    return None if timeout is None else seconds('timeout', timeout)


def look_up(
    loop: Loop,
    kernel: Kernel,
    host: str,
    port: int,
    family: int,
    on_done: Callable[[list[Address] | None, Exception | None], object],
) -> ThreadCall:
    """Look a name up in a thread and call `on_done(addresses, error)` in the loop; one of the two is None.

    Close the returned handle to cancel.
    """

    def done(found: Any, error: BaseException | None) -> None:
        if error is None and found:
            on_done([(family, address) for family, _, _, _, address in found], None)
        else:
            on_done(None, _failure(host, error or 'it has no address', 'name'))

    return loop.look_ups.submit(kernel.getaddrinfo, (host, port, family, SOCK_STREAM), done)


def look_up_name(
    loop: Loop, kernel: Kernel, host: str, address: Any, on_done: Callable[[str | None, Exception | None], object]
) -> ThreadCall:
    """Look up the name of `address` in a thread and call `on_done(name, error)` in the loop; one of the two is None.

    Close the returned handle to cancel.
    """

    def done(found: Any, error: BaseException | None) -> None:
        if error is None:
            on_done(found[0], None)
        else:
            on_done(None, _failure(host, error, 'address'))

    return loop.look_ups.submit(kernel.getnameinfo, (address, NI_NAMEREQD | NI_NUMERICSERV), done)


def _failure(host: str, reason: object, what: str) -> ResolveError:
    return ResolveError(f'cannot look up {host!r}: {reason}; check the {what} and the network')
