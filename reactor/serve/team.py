"""What the parent, its slots and its worker processes share: settings, and the workers that are leaving."""

from __future__ import annotations

from typing import Any, Protocol

from .. import Reactor
from .addresses import ListenAddress


class Team:
    """The base class of `Workers`: what slots and worker processes know of it."""

    r: Reactor
    argv: list[str]
    listen_addresses: list[ListenAddress]
    patience: float  # seconds that a leaving worker has until it is killed, unless its own program says otherwise
    times: tuple[float, ...]  # arguments of `drain` for leaving workers; empty: the times that `run` was given
    start_timeout: float  # seconds, as in the program of the latest worker
    hang_timeout: float | None  # seconds, unless the worker's own program says otherwise
    status: int  # the exit status of the program
    slots: list[Any]  # empty during shutdown
    leaving: set[Any]  # the worker processes that drain
    restarts: dict[str, int]  # for each slot, how many of its workers have failed

    def go_on(self) -> None:
        """Called after each change: take the next step of a round of replacements, or stop the loop."""
        raise NotImplementedError

    def compare(self, child: Any, fixed: dict[str, str]) -> None:
        """Called when a worker has started, with what a restart of its program would change."""
        raise NotImplementedError

    def give_up(self, slot: WorkerSlot) -> None:
        """Called when a worker failed to start in `slot`."""
        raise NotImplementedError


class WorkerSlot(Protocol):
    """What a worker process knows of its slot."""

    team: Team
    number: int
    listeners: list[Any]
    serving: Any
    starting: Any

    def start(self) -> None: ...
    def on_ready(self, child: Any) -> None: ...
    def on_drained(self) -> None: ...
    def on_failed(self, child: Any, what: str) -> None: ...
