"""Progress display on standard error: one line updated in place on a terminal, otherwise a new line every second.

Standard output is reserved for the results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from .. import Reactor, Timer

ON_TERMINAL, IN_PIPE = 0.2, 1.0  # seconds between two lines


class Progress:
    """Shows the text that `line()` returns, from `start` to `end`. Shows nothing if `quiet` is true."""

    def __init__(self, quiet: bool, in_pipe: bool = True) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = not quiet and (self._terminal or in_pipe)
        self._line: Callable[[], str] | None = None
        self._timer: Timer | None = None

    def start(self, r: Reactor, line: Callable[[], str]) -> None:
        """Begin to show the text that `line` returns."""
        if self._shown:
            self._line = line
            self._timer = r.call_every(ON_TERMINAL if self._terminal else IN_PIPE, self.show)
            self._timer.unref()

    def show(self) -> None:
        """Show the current text."""
        if self._line is not None:
            print(f'\r{self._line()}\033[K' if self._terminal else self._line(),
                  end='' if self._terminal else '\n', file=sys.stderr, flush=True)  # fmt: skip

    def end(self) -> None:
        """Show the text one last time and end the line."""
        if self._timer is not None:
            self.show()
            self._timer.cancel()
            self._timer = self._line = None
            if self._terminal:
                print(file=sys.stderr)


def bar(share: float, width: int = 30) -> str:
    """Return a progress bar; `share` is 0 to 1."""
    full = round(max(0.0, min(1.0, share)) * width)
    return '█' * full + '·' * (width - full)
