"""Finished rounds, kept in rounds.jsonl so that an interrupted comparison can continue.

One line holds one round of one workload, and is written when that round is complete. Rounds that were measured with
other settings raise an error.
"""

import json


class Rounds:
    """The finished rounds in the file `path`; without `resume` the file is emptied."""

    def __init__(self, path, settings, resume):
        self.path = path
        self.settings = settings
        self.done = {}
        if resume and path.exists():
            self.read()
        else:
            path.write_text('')

    def read(self):
        for line in self.path.read_text().splitlines():
            one = json.loads(line)
            if one['settings'] != self.settings:
                raise SystemExit(
                    f'{self.path} was measured with {one["settings"]}, not with {self.settings}: '
                    'give the same options, another --out, or no --resume'
                )
            self.done[one['workload'], one['round']] = one

    def has(self, workload, index):
        return (workload, index) in self.done

    def add(self, workload, index, figures, failures):
        one = {'workload': workload, 'round': index, 'settings': self.settings}
        one |= {'figures': figures, 'failures': failures}
        self.done[workload, index] = one
        with self.path.open('a') as file:
            file.write(json.dumps(one) + '\n')

    def figures(self, workload):
        """Return one dict for each round; it maps each peer to its figures."""
        return [one['figures'] for (name, _), one in sorted(self.done.items()) if name == workload]

    def failures(self, workload):
        """Return the last failure of each peer that failed."""
        found = {}
        for (name, _), one in sorted(self.done.items()):
            if name == workload:
                found |= one['failures']
        return found
