"""Fuzzing: libFuzzer mutates inputs, guided by which lines of the reactor they reach.

Each target is a module of this package with a function `run(data)`. It takes the bytes of one input, and raises when
something that the documentation promises does not hold. Targets need no atheris; only the search for new inputs does.

    python -m tests.fuzz framing                        search until something is found, starting with the corpus
    python -m tests.fuzz framing -max_total_time=60     with any option of libFuzzer
    python -m tests.fuzz framing FILE                   run one input again

What a target expects comes from docstrings, from the protocol's own specification, or from a naive implementation that
reads the whole input at once. Nothing is copied from the code under test.
"""

from __future__ import annotations

from pathlib import Path

TARGETS = ('proxy_header', 'framing', 'live_page', 'control_socket', 'tls_records', 'simulation')
CORPUS = Path(__file__).parent / 'corpus'

"""The files in the corpus of one target."""


def kept_inputs(target: str) -> list[Path]:
    """The files of the kept corpus of one target."""
    return sorted(path for path in (CORPUS / target).iterdir() if not path.name.startswith('.'))
