"""Closes a loop: every step is taken and every handle is closed, even if callbacks raise exceptions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .alive import Alive
from .failures import Failures

CLOSING_ROUNDS = 1000  # limits a close in which callbacks keep opening new connections


def take_steps(steps: Iterable[tuple[Any, ...]]) -> None:
    """Call each step, (function, *arguments), and repeat it if it raises. At the end raise the first exception."""
    error = None
    for fn, *args in steps:
        for _ in range(CLOSING_ROUNDS):
            try:
                fn(*args)
                break
            except BaseException as exc:
                error = exc if error is None else error
    if error is not None:
        raise error


def run_exit_callbacks(callbacks: list[Any], failures: Failures) -> None:
    """Call the exit callbacks; the one added last is called first."""
    while callbacks:
        fn, args = callbacks.pop()
        try:
            fn(*args)
        except Exception as exc:
            failures.exit_callback_failed(exc)


def end_handles(
    alive: Alive, completions: deque[Any], failures: Failures, run_completions: Callable[[int], None]
) -> None:
    """Abort all handles and run all completions until none are left. At the end raise the last exception, if any."""
    error = None
    for _ in range(CLOSING_ROUNDS):  # an `on_close` may open another connection
        for handle in alive.handles():
            try:
                handle.reset(None)
            except BaseException as exc:
                error = exc  # the other handles still have to be closed
        failures.end_starved()
        if not completions:
            break
        run_completions(len(completions))
    if error is not None:
        raise error
