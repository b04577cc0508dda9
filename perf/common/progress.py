"""How far a long measurement is: one line that is written over on a terminal, a line now and then elsewhere.

Owns the display. Knows nothing of what is measured. The rule: it costs nothing when it is asked too often.
"""

import sys
import time

ON_A_TERMINAL = 0.1  # seconds between two updates
ELSEWHERE = 15.0  # seconds between two lines of a log
BAR = 20  # characters


class Progress:
    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.rewrites = self.stream.isatty()
        self.every = ON_A_TERMINAL if self.rewrites else ELSEWHERE
        self.label = ''
        self.began = self.shown = time.monotonic()

    def begin(self, label, seconds):
        """What follows is measured now, for about so many seconds."""
        self.label = label
        self.began = self.shown = time.monotonic()
        self._write(f'{label}  ... about {duration(seconds)}')

    def update(self, done, total, text=''):
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        share = min(1, done / total) if total else 0
        left = (now - self.began) * (1 - share) / share if share else 0
        bar = '#' * round(BAR * share)
        self._write(f'{self.label}  [{bar:.<{BAR}}] {share:4.0%}  {text}  {duration(left)} left')

    def say(self, text):
        """A line that stays."""
        self.stream.write(('\r\x1b[K' if self.rewrites else '') + text + '\n')
        self.stream.flush()

    def _write(self, text):
        self.stream.write('\r\x1b[K' + text[:150] if self.rewrites else text + '\n')
        self.stream.flush()


def duration(seconds):
    seconds = round(seconds)
    return f'{seconds} s' if seconds < 120 else f'{seconds // 60} min {seconds % 60:02} s'
