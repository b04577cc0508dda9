"""The command `python -m tests.fuzz TARGET [options of libFuzzer]`; see the package's docstring."""

from __future__ import annotations

import sys

from .driver import main

main(sys.argv[1:])
