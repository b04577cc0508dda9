"""The results of the cases: stored in results.jsonl as soon as each is measured, and shown as a table.

A line is appended when a case is finished, and lines are never changed: the last line for a case counts. The table
names the commit of each result.
"""

import json

HELD, MISSED, FAILED, NOT_RUN = 'held', 'missed', 'failed', 'not run'
DISTURBED = 0.25  # cores: if other processes used more than this, the table says so


class Results:
    """The lines of results.jsonl."""

    def __init__(self, path):
        self.path = path

    def all(self):
        """Return every line so far, including those that other commands wrote to the same file."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [{'case': row.get('figure'), **row} for row in rows]  # earlier versions named this field `figure`

    def latest(self, scale):
        """Return {case: its last line at this scale}."""
        return {one['case']: one for one in self.all() if one['scale'] == scale}

    def has(self, case, scale, commit):
        """Return whether the case was measured at this commit. A checkout with changes (`+`) never counts."""
        found = [one for one in self.all() if (one['case'], one['scale'], one['commit']) == (case, scale, commit)]
        return bool(found) and found[-1]['outcome'] in (HELD, MISSED) and not commit.endswith('+')

    def add(self, result):
        with self.path.open('a') as file:
            file.write(json.dumps(result) + '\n')


def table(results, machine):
    """Return a Markdown table of what was promised and measured; `machine` has the facts for its first line."""
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
    """Return the outcome of a result, and reasons to doubt it: a reduced size or a busy machine."""
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
