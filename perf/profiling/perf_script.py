"""Read a recording of `perf record -g`: stacks of Python functions, of C functions, and of the kernel's functions.

Python that runs with `-X perf` gives each of its functions some machine code with a name, `py::NAME:FILE`
(https://docs.python.org/3/howto/perf_profiling.html). Between two of these are the interpreter's own C functions, which
are left out. What follows the innermost Python function is kept, except for the interpreter's loop, whose time is that
of the Python function itself.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from .speedscope import KERNEL, Frame, Stack, write

FIRST_OF_KERNEL = 1 << 63  # the lowest address of the kernel's half, on 64-bit systems
LINE = re.compile(r'\s+([0-9a-f]+) (.+) \((.*)\)$')
PYTHON = 'py::'


def frame_of(address: int, symbol: str, module: str) -> Frame:
    """Return the frame that a line of `perf script` describes; `module` is the file that the code is from."""
    if symbol.startswith(PYTHON):
        function, _, file = symbol[len(PYTHON) :].partition(':')
        return Frame(function, file, 0)
    file = KERNEL if address >= FIRST_OF_KERNEL else f'[{module.rsplit("/", 1)[-1].strip("[]")}]'
    return Frame(file if symbol == '[unknown]' else symbol, file, 0)


def simplified(frames: list[Frame]) -> Stack:
    """Return a stack, outermost frame first, without the interpreter's frames between two Python functions."""
    python = [index for index, frame in enumerate(frames) if frame.kind == 'Python']
    if not python:
        return tuple(frames)
    inner = frames[python[-1] + 1 :]
    if inner and 'python' in inner[0].file:
        del inner[0]  # the interpreter's loop
    inner = [frame for before, frame in zip([None, *inner], inner, strict=False) if frame != before]
    return (*(frames[index] for index in python), *inner)


def parse(lines: Iterable[str], pid: int) -> dict[str, list[Stack]]:
    """Return {name of the thread: its samples} from the output of `perf script -F tid,time,ip,sym,dso`."""
    threads: dict[str, list[Stack]] = {}
    frames: list[Frame] = []
    name = ''
    for line in lines:
        if found := LINE.match(line):
            frames.append(frame_of(int(found[1], 16), found[2], found[3]))
        elif line.strip():
            tid = int(line.split()[0])
            name = 'MainThread' if tid == pid else f'thread {tid}'
        elif frames:
            threads.setdefault(name, []).append(simplified(frames[::-1]))
            frames = []
    return threads


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.perf_script', description='Convert the output of `perf script` to a speedscope file.'
    )
    parser.add_argument('script', type=Path, help='the output of perf script -F tid,time,ip,sym,dso')
    parser.add_argument('out', type=Path)
    parser.add_argument('--pid', type=int, required=True)
    args = parser.parse_args()
    with args.script.open(errors='replace') as lines:
        write(args.out, parse([*lines, ''], args.pid))


if __name__ == '__main__':
    main()
