"""The tables of docs/counters.md, generated from the declarations of the counters.

After a declaration has changed, run `python -m tests.helpers.counters_table`. The last column, which says what to do
when a counter grows, is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from reactor import Stats

PAGE = Path(__file__).parents[2] / 'docs' / 'counters.md'
WITHOUT_COUNTER = '\n## Metrics without a counter\n'  # the heading after the tables of counters
SUFFIX = {'count': '_total', 'seconds': '_total', 'gauge': '', 'other': ''}


def metric(name: str) -> str:
    declared = Stats.declared[name]
    suffix = '_total' if name == 'slow' else SUFFIX[declared.kind]
    return f'reactor_{declared.metric or name}{suffix}'


def row(match: re.Match[str]) -> str:
    name, advice = match[1], match[2]
    if name not in Stats.declared:
        raise ValueError(f'{name} is in a table of {PAGE.name}, but is not declared in reactor/loop/counters.py')
    return f'| `{name}` | `{metric(name)}` | {Stats.declared[name].help} |{advice}|'


def written(text: str) -> str:
    """Return the page, with the names and help texts of the metrics as they are declared now."""
    tables, heading, rest = text.partition(WITHOUT_COUNTER)
    return re.sub(r'^\| `(\w+)` \|.*\|([^|]*)\|$', row, tables, flags=re.MULTILINE) + heading + rest


if __name__ == '__main__':
    PAGE.write_text(written(PAGE.read_text()))
