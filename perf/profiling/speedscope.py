"""Read a recording: py-spy's speedscope file, sample by sample.

One sample is one tick of the sampler, with the stack at that moment, outermost frame first.
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
        """The name of the file and of its folder."""
        return '/'.join(self.file.replace(os.sep, '/').split('/')[-2:])

    def __str__(self) -> str:
        return f'{self.function} ({self.path}:{self.line})'


Stack = tuple[Frame, ...]


def read(path: str | os.PathLike[str]) -> dict[str, list[Stack]]:
    """Return the samples of each thread, by the name of the thread."""
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
