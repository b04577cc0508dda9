"""Run a server program so that it can be marked: `python marked.py PROGRAM ARGUMENTS`, under callgrind.

At each SIGUSR1 the process calls `os.getppid`, which nothing else here calls: callgrind is told to write down what it
has counted whenever that function is entered, and to count from zero again. The handler is plain Python, so the marked
server has no thread and no descriptor that it does not have in production.
"""

import gc
import os
import runpy
import signal
import sys


def mark(signum, frame):
    """Start the next interval in the same state of the garbage collector as the one before it."""
    gc.collect()
    gc.freeze()  # so that a collection costs what the requests leave behind, and not the size of the program
    os.getppid()


def main():
    signal.signal(signal.SIGUSR1, mark)
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')


main()
