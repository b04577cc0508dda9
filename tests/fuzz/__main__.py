"""The command `python tests/fuzz TARGET [options of libFuzzer]`; see the package's docstring."""

from __future__ import annotations

import sys
from pathlib import Path

# The folder of the tests in place of this one: targets import what tests share, and are modules of a package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from fuzz.driver import main  # noqa: E402

main(sys.argv[1:])
