"""A table of requests that wait for their answers, each with an id and a time limit.

A request is in the table from `add` until its first end: an answer, an error, its time limit, or `close`. So each
request ends exactly once, and an answer that comes later finds no request.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ..errors import ConnectionClosed, RequestTimeout, TooManyRequests
from ..facade import Reactor
from ..loop.checks import callback, number, seconds, shown, whole
from ..loop.timers import Timer

Answer = TypeVar('Answer')


class PendingRequest(Generic[Answer]):
    """A request that waits for its answer, as returned by `Requests.add`.

    Attributes:
        id: Its id.
        deadline: When it fails with `RequestTimeout`: a reading of the clock, like `r.now`. None: it has no time limit.
        closed: Whether it has ended. Its `on_done` may still have to be called.
    """

    __slots__ = ('_on_done', '_requests', '_timer', 'closed', 'deadline', 'id')

    def __init__(
        self,
        requests: Requests[Answer],
        id: Hashable,
        on_done: Callable[[Answer | None, BaseException | None], object],
        deadline: float | None,
    ) -> None:
        self.id: Hashable = id
        self.deadline: float | None = deadline
        self.closed: bool = False
        self._requests = requests
        self._on_done: Callable[[Answer | None, BaseException | None], object] | None = on_done
        self._timer: Timer | None = None
        if deadline is not None:
            limit = max(0.0, deadline - requests.r.kernel.clock())
            self._timer = requests.r.call_at(deadline, self._time_out, limit)

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, at least 0, or None: the `timeout` to pass to the next step of the request."""
        return None if self.deadline is None else max(0.0, self.deadline - self._requests.r.kernel.clock())

    def close(self) -> None:
        """Abandon the request: `on_done` is not called, even if the answer has just arrived. May be called twice."""
        self._requests.take(self)
        self._on_done = None

    def end(self) -> None:
        """Called by the table when it has removed the request (internal)."""
        self.closed = True
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def report(self, answer: Answer | None, error: BaseException | None) -> None:
        """Call `on_done` unless the request was closed meanwhile (internal)."""
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(answer, error)

    def __repr__(self) -> str:
        return f'<PendingRequest {shown(self.id)}{" closed" if self.closed else ""}>'

    def _time_out(self, limit: float) -> None:
        self._timer = None  # a timer must not be cancelled in its own call
        self._requests.timed_out += 1
        self._requests.take(self)
        self.report(None, RequestTimeout(f'request {shown(self.id)} was not answered within {limit:.3g} s'))


class Requests(Generic[Answer]):
    """Requests that wait for their answers: `requests: reactor.Requests[bytes] = reactor.Requests(r, timeout=5)`.

    A table is for one connection, or for a client that connects again: its drawn ids never repeat, so an answer from
    an earlier connection finds no request. Call `fail_all` in `on_close`. `len(requests)` is the number of requests,
    and `id in requests` is True if one has this id. When the reactor is closed, `on_done` is not called.

    Attributes:
        r: The reactor.
        unknown: How many answers and errors had no request: their id was wrong, or the request had already ended.
        timed_out: How many requests have failed with `RequestTimeout`.

    Args:
        r: The reactor.
        timeout: The time limit in seconds of a request for which `add` gets none. None: no limit.
        max_pending: How many requests may wait at once; then `add` raises `TooManyRequests`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    __slots__ = ('_last_id', '_pending', '_timeout', 'max_pending', 'r', 'timed_out', 'unknown')

    def __init__(self, r: Reactor, *, timeout: float | None = None, max_pending: int = 1000) -> None:
        if not isinstance(r, Reactor):
            raise TypeError(f'r must be a Reactor, not {shown(r)}')
        self.r: Reactor = r
        self.max_pending: int = whole('max_pending', max_pending, 1, unit='number of requests')
        self.unknown: int = 0
        self.timed_out: int = 0
        self._timeout = None if timeout is None else seconds('timeout', timeout)
        self._pending: dict[Hashable, PendingRequest[Answer]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, id: Hashable) -> bool:
        return id in self._pending

    def add(
        self,
        on_done: Callable[[Answer | None, BaseException | None], object],
        *,
        id: Hashable = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> PendingRequest[Answer]:
        """Add a request.

        Its time limit begins now, so add it before it is queued or a connection is made for it, and pass its
        `time_left` as the `timeout` of these steps and its `deadline` to the requests that it causes.

        Args:
            on_done: `on_done(answer, error)`, called once in the loop, never inside a call of this table. `error` is
                None if there is an answer. Otherwise `answer` is None, and `error` is a `RequestTimeout`, or the
                argument of `fail` or `fail_all`.
            id: Any object that can be a key of a dict. None: the next int that is not in use, from 1 on.
            timeout: Seconds until the request fails. None: the `timeout` of the table.
            deadline: The same as a reading of the clock. With both, the earlier one counts.

        Returns:
            The request; closing it abandons it.

        Raises:
            TooManyRequests: `max_pending` requests are waiting.
            TypeError, ValueError: An argument is wrong, or a request with this id is waiting.
            HandleClosed: The reactor is closed.
        """
        callback('on_done', on_done, '(answer, error)')
        if id is not None and id in self._pending:
            raise ValueError(f'a request with the id {shown(id)} is waiting for its answer; use another id')
        timeout = self._timeout if timeout is None else seconds('timeout', timeout)
        deadline = None if deadline is None else number('deadline', deadline)
        if len(self._pending) >= self.max_pending:
            message = f'{len(self._pending)} requests are waiting for their answers (max_pending); try again later'
            raise TooManyRequests(message)
        if timeout is not None:
            until = self.r.kernel.clock() + timeout
            deadline = until if deadline is None else min(deadline, until)
        while id is None or id in self._pending:
            self._last_id = id = self._last_id + 1
        self._pending[id] = request = PendingRequest(self, id, on_done, deadline)
        return request

    def answer(self, id: Hashable, answer: Answer) -> bool:
        """Pass an answer to its request. Returns False if there is none: the id is wrong, or the answer is late."""
        return self._finish(id, answer, None)

    def fail(self, id: Hashable, error: BaseException) -> bool:
        """Pass an error to the request with this id instead of an answer. Returns False as `answer` does.

        Raises:
            TypeError: `error` is not an exception.
        """
        if not isinstance(error, BaseException):
            raise TypeError(f'error must be an exception, not {shown(error)}')
        return self._finish(id, None, error)

    def fail_all(self, error: BaseException | None = None) -> int:
        """Pass an error to all requests, and return their number.

        Args:
            error: Such as the `exc` of `on_close`. None: a `ConnectionClosed`.
        """
        if error is None:
            error = ConnectionClosed('the connection was closed before the answer arrived')
        elif not isinstance(error, BaseException):
            raise TypeError(f'error must be an exception or None, not {shown(error)}')
        requests = list(self._pending)
        for id in requests:
            self._finish(id, None, error)
        return len(requests)

    def take(self, request: PendingRequest[Answer]) -> None:
        """Called by a request that has ended by itself (internal)."""
        if not request.closed:
            del self._pending[request.id]
            request.end()

    def _finish(self, id: Hashable, answer: Answer | None, error: BaseException | None) -> bool:
        try:
            request = self._pending.pop(id, None)
        except TypeError:
            request = None  # a peer has sent an id that cannot be a key of a dict, such as a list
        if request is None:
            self.unknown += 1
            return False
        request.end()
        self.r.call_soon(request.report, answer, error)
        return True
