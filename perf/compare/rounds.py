"""The rounds that are finished, kept in a file while the rest is measured.

Owns rounds.jsonl: one line for each round of a workload. The rule: a line is written when all of its round is done, and
rounds measured under other settings are never mixed in.
"""

import json


class Rounds:
    def __init__(self, path, settings, resume):
        self.path = path
        self.settings = settings
        self.done = {}
        if resume and path.exists():
            self.load()
        else:
            path.write_text('')

    def load(self):
        for line in self.path.read_text().splitlines():
            one = json.loads(line)
            if one['settings'] != self.settings:
                raise SystemExit(f'{self.path} was measured with {one["settings"]}, now it is {self.settings}')
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
        """What each peer yielded, round by round."""
        return [one['figures'] for (name, _), one in sorted(self.done.items()) if name == workload]

    def failures(self, workload):
        """What went wrong last, by peer."""
        found = {}
        for (name, _), one in sorted(self.done.items()):
            if name == workload:
                found |= one['failures']
        return found
