"""Shared parts of the models: numbers of examples, stack depths, and models of the framings."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine


def case_of(machine: Any, share: float = 1) -> Any:
    """Return the test case of a state machine; `share` scales the profile's number of examples."""
    default = settings.default
    assert default is not None
    machine.TestCase.settings = settings(default, max_examples=max(1, int(default.max_examples * share)))
    return pytest.mark.timeout(600)(machine.TestCase)  # slow: many examples


class Machine(RuleBasedStateMachine):
    """A state machine whose callbacks may raise AssertionError: the loop catches it, and the next `turns` raises it.

    Pass `caught` to the reactor as `catch_errors` and `on_error`. `Raised` is raised by callbacks on purpose.
    """

    failure: BaseException | None = None
    acts = 0  # counts every action of the user, the peer and the kernel, including actions in callbacks
    calm = 0  # turns since the last action

    def caught(self, *args: Any) -> None:
        exc = next(arg for arg in args if isinstance(arg, Exception))
        if not isinstance(exc, Raised):
            self.failure = self.failure or exc

    def turns(self, r: Any, count: int = 1) -> None:
        """Run `count` turns without waiting."""
        for _ in range(count):
            before = self.acts
            r.run_once(0)
            self.calm = self.calm + 1 if self.acts == before else 0
        if self.failure is not None:
            raise self.failure

    def acted(self) -> None:
        """Record that there was an action."""
        self.acts += 1
        self.calm = 0

    @property
    def settled(self) -> bool:
        """Whether every consequence of the last action has happened: events, then two rounds of completions."""
        return self.calm >= 3


class Raised(Exception):
    """Raised by a callback on purpose."""


def depth() -> int:
    """Count the frames below the caller's on the stack."""
    frame, count = sys._getframe(1), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count


# -- models of the framings: parse the whole input at once, return (messages, whether the next one is too long)


def model_lines(data: bytes, limit: int):
    messages = []
    while (at := data.find(b'\n')) >= 0:
        line, data = data[:at], data[at + 1 :]
        line = line[:-1] if line.endswith(b'\r') else line
        if len(line) > limit:
            return messages, True
        messages.append(line)
    return messages, len(data) > limit + 1


def model_until(data: bytes, limit: int, delimiter: bytes):
    messages = []
    while (at := data.find(delimiter)) >= 0:
        if at > limit:
            return messages, True
        messages.append(data[:at])
        data = data[at + len(delimiter) :]
    return messages, len(data) > limit + len(delimiter) - 1


def model_prefixed(data: bytes, limit: int, width: int, order: str):
    messages = []
    while len(data) >= width:
        size = int.from_bytes(data[:width], order)
        if size > limit:
            return messages, True
        if len(data) < width + size:
            break
        messages.append(data[width : width + size])
        data = data[width + size :]
    return messages, False


def model_exactly(data: bytes, limit: int, size: int):
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)], size > limit
