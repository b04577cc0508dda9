"""Progress of a long measurement: a line that is overwritten on a terminal, or occasional new lines in a log.

`update` can be called as often as is convenient: it returns at once unless a line is due.
"""

import sys
import time

ON_A_TERMINAL = 0.1  # seconds between two updates of the line
IN_A_LOG = 15.0  # seconds between two lines in a log
BAR = 20  # width of the bar in characters


class Progress:
    """A progress line on `stream`, by default standard error."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.rewrites = self.stream.isatty()
        self.every = ON_A_TERMINAL if self.rewrites else IN_A_LOG
        self.label = ''
        self.began = self.shown = time.monotonic()

    def begin(self, label, seconds):
        """Start the measurement `label`, which takes about `seconds`."""
        self.label = label
        self.began = self.shown = time.monotonic()
        self._write(f'{label}  ... about {duration(seconds)}')

    def update(self, done, total, text=''):
        """Show that `done` of `total` is finished, and how much time is left."""
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        share = min(1, done / total) if total else 0
        left = (now - self.began) * (1 - share) / share if share else 0
        bar = '#' * round(BAR * share)
        self._write(f'{self.label}  [{bar:.<{BAR}}] {share:4.0%}  {text}  {duration(left)} left')

    def say(self, text):
        """Write a line that is not overwritten."""
        self.stream.write(('\r\x1b[K' if self.rewrites else '') + text + '\n')
        self.stream.flush()

    def _write(self, text):
        self.stream.write('\r\x1b[K' + text[:150] if self.rewrites else text + '\n')
        self.stream.flush()


def duration(seconds):
    """Return a number of seconds as text, like '90 s' or '3 min 05 s'."""
    seconds = round(seconds)
    return f'{seconds} s' if seconds < 120 else f'{seconds // 60} min {seconds % 60:02} s'
