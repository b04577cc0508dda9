"""Handles, timers and requests that end together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ..loop.checks import shown

FIRST_SWEEP = 16  # members: a smaller group is not searched for members that have ended


class Closable(Protocol):
    """A handle, a request, a client of `reconnect`, another group: anything with `close()`."""

    def close(self) -> object:
        """End it. Does nothing the second time."""
        ...


class Cancellable(Protocol):
    """A timer."""

    def cancel(self) -> object:
        """End it. Does nothing the second time."""
        ...


Member = TypeVar('Member', bound=Closable | Cancellable)


class Group:
    """Connections, listeners, timers, requests and other handles that end together: `close` ends all of them.

    A group can be a member of another group. Members that end by themselves are forgotten: when the group has twice as
    many members as were open at the last search, it is searched for them. So a group never holds more than 16 members,
    or twice as many as are open, and adding one takes constant time on average. A timer has ended when it has fired; if
    you reset it after that, add it again.

    Attributes:
        closed: Whether `close` was called.
    """

    __slots__ = ('_members', '_sweep_at', 'closed')

    def __init__(self) -> None:
        self.closed: bool = False
        self._members: list[Any] = []
        self._sweep_at = FIRST_SWEEP

    def add(self, member: Member) -> Member:
        """Add a member, and return it. If the group is closed, the member is closed at once, and returned.

        Args:
            member: An object with a method `close` or `cancel`, which does nothing when it is called again.

        Raises:
            TypeError: `member` has neither method.
        """
        end = _end_of(member)
        if self.closed:
            end()
            return member
        if len(self._members) >= self._sweep_at:
            self._members = [each for each in self._members if not _has_ended(each)]
            self._sweep_at = max(FIRST_SWEEP, 2 * len(self._members))
        self._members.append(member)
        return member

    def close(self) -> None:
        """End all members, starting with the one added last. A second call does nothing.

        Raises:
            Exception: The first exception that a member has raised, after all members were ended.
        """
        self.closed, error = True, None
        while self._members:
            try:
                _end_of(self._members.pop())()
            except Exception as exc:
                error = error or exc
        if error is not None:
            raise error

    def __len__(self) -> int:
        return sum(not _has_ended(each) for each in self._members)

    def __repr__(self) -> str:
        return f'<Group {"closed" if self.closed else f"{len(self)} members"}>'


def _end_of(member: Any) -> Callable[[], object]:
    end: Any = getattr(member, 'close', None) or getattr(member, 'cancel', None)
    if not callable(end):
        raise TypeError(f'a member of a group must have close() or cancel(), and {shown(member)} has neither')
    method: Callable[[], object] = end
    return method


def _has_ended(member: Any) -> bool:
    if hasattr(member, 'close'):
        return bool(getattr(member, 'closed', False))
    return getattr(member, 'deadline', 0) is None
