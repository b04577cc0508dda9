"""Read a recording, a speedscope file from py-spy, sample by sample.

A sample is the stack at one tick of the sampler, outermost frame first.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple


class Frame(NamedTuple):
    """A place in the code: function, file and line."""

    function: str
    file: str
    line: int

    @property
    def path(self) -> str:
        """The name of the file, preceded by the name of its folder."""
        return '/'.join(self.file.replace(os.sep, '/').split('/')[-2:])

    def __str__(self) -> str:
        return f'{self.function} ({self.path}:{self.line})'


Stack = tuple[Frame, ...]


def read(path: str | os.PathLike[str]) -> dict[str, list[Stack]]:
    """Return {name of the thread: its samples}."""
    with open(path, encoding='utf-8') as file:
        recording = json.load(file)
    frames = [
        Frame(frame['name'], frame.get('file') or '', frame.get('line') or 0) for frame in recording['shared']['frames']
    ]
    threads: dict[str, list[Stack]] = {}
    for profile in recording['profiles']:
        stacks = [tuple(frames[index] for index in sample) for sample in profile['samples']]
        threads.setdefault(profile['name'], []).extend(stack for stack in stacks if stack)
    return threads
