"""Fuzzing: libFuzzer mutates inputs, guided by the lines of the reactor that they reach.

Each target is a module of this package with a function `run(data)`, which takes the bytes of one input and raises if
a promise of the documentation is broken. Targets work without atheris; only the search for new inputs needs it.

    python -m tests.fuzz framing                        search until an input fails, starting from the corpus
    python -m tests.fuzz framing -max_total_time=60     the same, with options for libFuzzer
    python -m tests.fuzz framing FILE                   run one input again

The expected results come from docstrings, from the specification of the protocol, or from a naive implementation that
reads the whole input at once. Nothing is copied from the code under test.
"""

from __future__ import annotations

from pathlib import Path

TARGETS = ('proxy_header', 'framing', 'live_page', 'control_socket', 'tls_records', 'simulation')
CORPUS = Path(__file__).parent / 'corpus'


def kept_inputs(target: str) -> list[Path]:
    """Return the files in the corpus of one target."""
    return sorted(path for path in (CORPUS / target).iterdir() if not path.name.startswith('.'))
