"""The base classes: a case is something that is promised, a way to measure it, and goals to compare with.

`measure` returns figures by name, or raises. Only the goals decide whether the figures are good enough, so goals can be
read, and tested, without measuring anything.
"""

import shutil


class Goal:
    """Part of a promise, in words and as a check of the figures.

    check  called with the dict that `measure` returned; a KeyError is a bug in the case, not a missed goal
    timed  whether it also depends on the speed of the machine, or on what else runs there
    """

    def __init__(self, text, check, timed=False):
        self.text = text
        self.check = check
        self.timed = timed


class Case:
    """Something that is promised and measured.

    name     by which it is chosen, like M1
    title    what is done, in a few words
    goals    the promises
    seconds  about how long it takes at full size
    needs    commands that have to be installed
    """

    name = title = ''
    seconds = 0
    needs: tuple = ()
    goals: tuple = ()

    def missing(self):
        """Return why it cannot be measured here, or None."""
        absent = [command for command in self.needs if shutil.which(command) is None]
        return f'{", ".join(absent)} not found; install it' if absent else None

    def measure(self, run):
        """Set up, measure and clean up; return the figures by name. `run` is a `Run`."""
        raise NotImplementedError


class Run:
    """The size of a measurement, and where it reports its progress.

    scale     factor for counts and times: 1, or less for a quick trial
    progress  a callable for `progress(done, total, text)`, called at any time; None to report nothing
    """

    def __init__(self, scale=1.0, progress=None):
        self.scale = scale
        self._progress = progress

    def count(self, full, least=1):
        """Return a number of things, which is `full` at full size."""
        return max(least, round(full * self.scale))

    def seconds(self, full, least=0.2):
        """Return a time in seconds, which is `full` at full size."""
        return max(least, full * self.scale)

    def progress(self, done, total, text=''):
        if self._progress is not None:
            self._progress(done, total, text)
