"""What cases yielded, kept in a file while the rest is measured, and told as a table.

Owns results.jsonl: a line for each case that was measured, appended when it is done. Knows no case. The rule: lines
are never changed, the last one for a case counts, and what was measured of another commit is told as such.
"""

import json

HELD, MISSED, FAILED, NOT_RUN = 'held', 'missed', 'failed', 'not run'
DISTURBED = 0.25  # of a core, used by others: worth a word


class Results:
    def __init__(self, path):
        self.path = path

    def all(self):
        """Every line so far, also of other commands that write to the same file."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [{'case': row.get('figure'), **row} for row in rows]  # earlier versions wrote `figure`

    def latest(self, scale):
        """The last line of each case in this size, by name."""
        return {one['case']: one for one in self.all() if one['scale'] == scale}

    def has(self, case, scale, commit):
        """Whether this commit was measured. A tree with changes (`+`) is no commit."""
        found = [one for one in self.all() if (one['case'], one['scale'], one['commit']) == (case, scale, commit)]
        return bool(found) and found[-1]['outcome'] in (HELD, MISSED) and not commit.endswith('+')

    def add(self, result):
        with self.path.open('a') as file:
            file.write(json.dumps(result) + '\n')


def table(results, machine):
    """Measured against promised, in Markdown. `machine`: facts for the head, by name."""
    lines = [', '.join(f'{name} {value}' for name, value in machine.items()), '']
    lines += ['| | what is promised | measured | | commit |', '| --- | --- | --- | --- | --- |']
    for one in results:
        promised = '<br>'.join(
            ('' if goal['held'] is not False else '**MISSED** ') + goal['text'] for goal in one['goals']
        )
        lines.append(
            f'| {one["case"]} | {one["title"]}: {promised} | {measured(one)} | {outcome(one)} | {one["commit"]} |'
        )
    return '\n'.join([*lines, ''])


def measured(one):
    texts = [f'{name} {number(value)}' for name, value in one['measured'].items()]
    return ', '.join(texts) or one['error'] or ''


def outcome(one):
    words = one['outcome'] if one['outcome'] == HELD else one['outcome'].upper()
    if one['scale'] != 1:
        words += f', in {one["scale"]:g} of its size'
    if one['others'] > DISTURBED:
        words += f', while others used {one["others"]:.1f} cores'
    return words


def number(value):
    if isinstance(value, dict):
        return '(' + ', '.join(f'{name} {number(one)}' for name, one in value.items()) + ')'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
