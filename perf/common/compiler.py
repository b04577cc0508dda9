"""Compile the programs in C: a lower bound, peers, and a load."""

import atexit
import functools
import shutil
import subprocess
import tempfile


def missing():
    """Return why nothing can be compiled here, or None."""
    return None if shutil.which('cc') else 'the command cc is not installed'


@functools.cache
def compiled(source, *libraries):
    """Compile a C file and return the path of the program. The program is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix='compare-')
    atexit.register(shutil.rmtree, folder)
    program = f'{folder}/{source.stem}'
    command = ['cc', '-O2', '-o', program, source, *(f'-l{name}' for name in libraries)]
    subprocess.run(command, check=True, timeout=60)
    return program
