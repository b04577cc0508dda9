"""Run cases of `growth_cases.py` under callgrind, with a mark before and after each: `work_in_c.py SIZE CASE...`.

Each case is run with SIZE things, then with twice and with four times as many. At a mark callgrind writes a dump of its
counts (see `perf/instructions/callgrind.py`), so every second dump belongs to a case.
"""

from __future__ import annotations

import gc
import os
import sys

from tests.helpers.growth_cases import CASES


class Mark:
    """A replacement for `Meter` that makes callgrind write its counts."""

    def __enter__(self) -> None:
        gc.freeze()
        os.getppid()

    def __exit__(self, *exc: object) -> None:
        os.getppid()


def main() -> None:
    gc.disable()  # a garbage collection would visit all objects, and be counted, too
    for name in sys.argv[2:]:
        for step in range(3):
            CASES[name][0](int(sys.argv[1]) << step, Mark())


main()
