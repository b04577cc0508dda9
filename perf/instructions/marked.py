"""Run a server program so that it can be marked: `python marked.py PROGRAM ARGUMENTS`, under callgrind.

At each SIGUSR1 the process calls `os.getppid`, which nothing else here calls: callgrind is asked to write down what it
has counted whenever that function is entered, and to count from zero again. The handler is plain Python, so the marked
server has no thread and no descriptor that it does not have in production.
"""

import gc
import os
import runpy
import signal
import sys


def mark(signum, frame):
    """Begin the next interval.

    The garbage collector starts each interval with its counters at zero, and leaves alone what exists already, so a
    collection costs what the requests leave behind, and not the size of the program.
    """
    gc.freeze()
    os.getppid()


def main():
    signal.signal(signal.SIGUSR1, mark)
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')


main()
