"""The end of a loop: whatever the callbacks raise meanwhile, every step is taken and every handle is closed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable
    from typing import Any

    from .alive import Alive
    from .failures import Failures

CLOSING_ROUNDS = 1000  # a program that never ends is cut off


def take_steps(steps: Iterable[tuple[Any, ...]]) -> None:
    """Take each step, a function and its arguments, again after an exception; then raise the first exception."""
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
    """Call the exit callbacks, the last added first."""
    while callbacks:
        fn, args = callbacks.pop()
        try:
            fn(*args)
        except Exception as exc:
            failures.exit_callback_failed(exc)


def end_handles(alive: Alive, completions: deque[Any], run_completions: Callable[[int], None]) -> None:
    """Abort every handle and run the completions, until neither is left; then raise the last exception."""
    error = None
    for _ in range(CLOSING_ROUNDS):  # closing a connection may open another
        for handle in alive.handles():
            try:
                handle.reset(None)
            except BaseException as exc:
                error = exc  # the others are closed all the same
        if not completions:
            break
        run_completions(len(completions))
    if error is not None:
        raise error
