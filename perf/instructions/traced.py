"""Run a server program and count calls and bytecodes by function: `python traced.py PREFIX PROGRAM ARGUMENTS`.

At each SIGUSR1 the counts are written to PREFIX.1, PREFIX.2 and so on, as JSON, and start again from zero. A trace
function sees every bytecode, so the program runs some hundred times slower than usual, and does the same.
"""

import json
import os
import runpy
import signal
import sys

counts = {}  # {code object: [calls, bytecodes]}
marks = 0


def trace(frame, event, arg):
    """Count a call, and ask for the bytecodes of the function."""
    if frame.f_code.co_filename == __file__:
        return None
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    counts.setdefault(frame.f_code, [0, 0])[0] += 1
    return trace_inside


def trace_inside(frame, event, arg):
    if event == 'opcode':
        counts.setdefault(frame.f_code, [0, 0])[1] += 1
    return trace_inside


def mark(signum, frame):
    """Write the counts and begin the next interval."""
    global marks
    marks += 1
    found = [[code.co_filename, code.co_qualname, *both] for code, both in counts.items()]
    counts.clear()
    path = f'{prefix}.{marks}'
    with open(path + '.new', 'w') as file:
        json.dump(found, file)
    os.rename(path + '.new', path)


signal.signal(signal.SIGUSR1, mark)
prefix = sys.argv[1]
del sys.argv[:2]
sys.path[0] = os.path.dirname(sys.argv[0])
sys.settrace(trace)
runpy.run_path(sys.argv[0], run_name='__main__')
