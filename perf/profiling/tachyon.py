"""Read a recording of Python's own sampling profiler, `python -m profiling.sampling` (PEP 799, from Python 3.15 on).

Its collapsed stacks name a file without its folder, and its JSON lines name the whole path but have no stacks, so both
are made from one binary recording and joined.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from .speedscope import Frame, Stack, write

Place = tuple[str, str, int]  # name of the file, function, line


def paths(lines: Iterable[str]) -> dict[Place, str]:
    """Return {place in the code: the whole path of its file} from the JSON lines of a recording."""
    strings: dict[int, str] = {}
    found: dict[Place, str] = {}
    for line in lines:
        record = json.loads(line)
        for each in record.get('strings', ()):
            strings[each['str_id']] = each['value']
        for each in record.get('frames', ()) if record['type'] == 'frame_table' else ():
            path = strings[each['path_str_id']]
            found[path.rsplit('/', 1)[-1], strings[each['func_str_id']], each['line'] or 0] = path
    return found


def parse(lines: Iterable[str], known: dict[Place, str], pid: int) -> dict[str, list[Stack]]:
    """Return {name of the thread: its samples} from the collapsed stacks of a recording."""
    threads: dict[str, list[Stack]] = {}
    for line in lines:
        stack, _, times = line.rstrip('\n').rpartition(' ')
        thread, *frames = stack.split(';')
        tid = int(thread.removeprefix('tid:'))
        sample = tuple(frame_of(frame, known) for frame in frames)
        threads.setdefault('MainThread' if tid == pid else f'thread {tid}', []).extend([sample] * int(times))
    return threads


def frame_of(text: str, known: dict[Place, str]) -> Frame:
    """Return a frame from `FILE:FUNCTION:LINE`, or from a mark such as `<GC>`."""
    if ':' not in text:
        return Frame(text, '', 0)
    file, function, line = text.rsplit(':', 2)
    number = int(line) if line.isdigit() else 0
    return Frame(function, known.get((file, function, number), file), number)


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.tachyon', description="Convert a recording of Python's profiler to a speedscope file."
    )
    parser.add_argument('collapsed', type=Path)
    parser.add_argument('json_lines', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--pid', type=int, required=True)
    args = parser.parse_args()
    with args.json_lines.open() as file:
        known = paths(file)
    with args.collapsed.open() as file:
        write(args.out, parse(file, known, args.pid))


if __name__ == '__main__':
    main()
