"""The results of the cases, kept in results.jsonl while others are measured, and shown as a table.

A line is appended when a case is done, and lines are never changed: the last one for a case counts. The table names the
commit of each result.
"""

import json

HELD, MISSED, FAILED, NOT_RUN = 'held', 'missed', 'failed', 'not run'
DISTURBED = 0.25  # of a core: when other processes used more, the table says so


class Results:
    """The lines of results.jsonl."""

    def __init__(self, path):
        self.path = path

    def all(self):
        """Return every line so far, including those of other commands that write to the same file."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [{'case': row.get('figure'), **row} for row in rows]  # earlier versions wrote `figure`

    def latest(self, scale):
        """Return the last line of each case at this scale, by name."""
        return {one['case']: one for one in self.all() if one['scale'] == scale}

    def has(self, case, scale, commit):
        """Return whether the case was measured at this commit. A tree with changes (`+`) never counts."""
        found = [one for one in self.all() if (one['case'], one['scale'], one['commit']) == (case, scale, commit)]
        return bool(found) and found[-1]['outcome'] in (HELD, MISSED) and not commit.endswith('+')

    def add(self, result):
        with self.path.open('a') as file:
            file.write(json.dumps(result) + '\n')


def table(results, machine):
    """Return a Markdown table of what was promised and measured; `machine` has facts for its first line."""
    lines = [', '.join(f'{name} {value}' for name, value in machine.items()), '']
    lines += ['| | promised | measured | | commit |', '| --- | --- | --- | --- | --- |']
    for one in results:
        promised = '<br>'.join(
            ('' if goal['held'] is not False else '**MISSED** ') + goal['text'] for goal in one['goals']
        )
        lines.append(
            f'| {one["case"]} | {one["title"]}: {promised} | {measured(one)} | {outcome(one)} | {one["commit"]} |'
        )
    return '\n'.join([*lines, ''])


def measured(one):
    """Return the figures of a result as text, or its error."""
    texts = [f'{name} {number(value)}' for name, value in one['measured'].items()]
    return ', '.join(texts) or one['error'] or ''


def outcome(one):
    """Return the outcome of a result, with what limits its value."""
    words = one['outcome'] if one['outcome'] == HELD else one['outcome'].upper()
    if one['scale'] != 1:
        words += f', at {one["scale"]:g} of full size'
    if one['others'] > DISTURBED:
        words += f', while other processes used {one["others"]:.1f} cores'
    return words


def number(value):
    if isinstance(value, dict):
        return '(' + ', '.join(f'{name} {number(one)}' for name, one in value.items()) + ')'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
