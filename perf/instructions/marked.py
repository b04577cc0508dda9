"""Run a server program under callgrind with marks: `python marked.py PROGRAM ARGUMENTS`.

At each SIGUSR1 the process calls `os.getppid`, which is called nowhere else. callgrind is set up to write its count
whenever that function is entered, and to start again from zero. The handler is plain Python, so the server has the same
threads and descriptors as in production.
"""

import gc
import os
import runpy
import signal
import sys


def mark(signum, frame):
    """Begin the next interval.

    `gc.freeze()` resets the collector's counters and exempts all objects that exist. So the cost of a collection
    depends on the objects that requests create, and not on the size of the program.
    """
    gc.freeze()
    os.getppid()


def main():
    signal.signal(signal.SIGUSR1, mark)
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')


main()
