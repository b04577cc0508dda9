"""What a case is: what is promised, how it is measured, and whether the one holds the other.

Owns the base classes. Knows no case. The rule: `measure` returns what was measured, by name, or raises; whether that
is enough is asked of the goals alone, so that they can be read, and tested, without measuring anything.
"""

import shutil


class Goal:
    """Part of a promise: in words, and as a question about what was measured.

    check  called with the dict that `measure` returned; a KeyError is a defect of the case, no missed goal
    timed  whether it says something about the speed of the machine, too, or about how quiet it is
    """

    def __init__(self, text, check, timed=False):
        self.text = text
        self.check = check
        self.timed = timed


class Case:
    """Something promised and measured.

    name     M1, by which it is chosen
    title    what is done, in a few words
    goals    the promises
    seconds  about how long it takes in full size
    needs    commands that it cannot do without
    """

    name = title = ''
    seconds = 0
    needs: tuple = ()
    goals: tuple = ()

    def missing(self):
        """Why it cannot be measured here, or None."""
        absent = [command for command in self.needs if shutil.which(command) is None]
        return f'{", ".join(absent)} not found; install it' if absent else None

    def measure(self, run):
        """Set up, measure, clean up; returns the measured values by name. `run` is a `Run`."""
        raise NotImplementedError


class Run:
    """How large a measurement is to be, and where it tells how far it is.

    scale     1, or less for a quick look: counts and times are multiplied with it
    progress  called as `progress(done, total, text)`, any time
    """

    def __init__(self, scale=1.0, progress=None):
        self.scale = scale
        self._progress = progress

    def count(self, full, least=1):
        """A number of things, `full` in full size."""
        return max(least, round(full * self.scale))

    def seconds(self, full, least=0.2):
        """A time in seconds, `full` in full size."""
        return max(least, full * self.scale)

    def progress(self, done, total, text=''):
        if self._progress is not None:
            self._progress(done, total, text)
