"""What the models share: how many examples they get, and stack depths."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import settings


def case_of(machine: Any, share: float = 1) -> Any:
    """The test of a state machine, with so many times the examples of the profile: steps cost more or less."""
    default = settings.default
    assert default is not None
    machine.TestCase.settings = settings(default, max_examples=max(1, int(default.max_examples * share)))
    return machine.TestCase


def depth() -> int:
    """How many frames are below the caller's."""
    frame, count = sys._getframe(1), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count
