"""Read and write a recording, a speedscope file, sample by sample.

A sample is the stack at one tick of the sampler, outermost frame first.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

KERNEL = '[kernel]'  # the file of the kernel's functions
KINDS = ('Python', 'C', 'kernel')


class Frame(NamedTuple):
    """A place in the code: function, file and line. The file of a C function is its library, in brackets."""

    function: str
    file: str
    line: int

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.file == KERNEL:
            return 'kernel'
        return 'C' if self.file.startswith('[') else 'Python'

    @property
    def path(self) -> str:
        """The name of the file, preceded by the name of its folder."""
        return '/'.join(self.file.replace(os.sep, '/').split('/')[-2:])

    def __str__(self) -> str:
        return f'{self.function} ({self.path}:{self.line})' if self.line else f'{self.function} ({self.path})'


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


def write(path: str | os.PathLike[str], threads: dict[str, list[Stack]]) -> None:
    """Write what `read` returns."""
    numbers: dict[Frame, int] = {}
    profiles = []
    for name, stacks in threads.items():
        samples = [[numbers.setdefault(frame, len(numbers)) for frame in stack] for stack in stacks]
        profiles.append({
            'type': 'sampled', 'name': name, 'unit': 'none', 'startValue': 0, 'endValue': len(samples),
            'samples': samples, 'weights': [1] * len(samples),
        })  # fmt: skip
    frames = [{'name': frame.function, 'file': frame.file, 'line': frame.line or None} for frame in numbers]
    recording = {
        '$schema': 'https://www.speedscope.app/file-format-schema.json',
        'shared': {'frames': frames},
        'profiles': profiles,
    }
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(recording, file)
