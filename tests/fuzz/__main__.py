"""The command `python -m tests.fuzz TARGET [libFuzzer options]`; see the docstring of the package."""

from __future__ import annotations

import sys

from .driver import main

main(sys.argv[1:])
