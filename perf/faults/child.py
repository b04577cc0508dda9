"""Run a function in a separate process, and exchange lines of JSON with it.

A child ends when its parent does, or when the parent closes the pipe. An exception in the child is raised in the parent
as `Failed`. The child runs `python -m perf.faults.child MODULE:FUNCTION ARGUMENTS`, which calls
`FUNCTION(control, **ARGUMENTS)` with a `Control`.
"""

import contextlib
import importlib
import json
import os
import selectors
import subprocess
import sys
import time

from perf.common.server import Failed, Measured, environment

PATIENCE = 120  # seconds within which an answer must arrive, by default
LATER = object()  # returned by a command that sends its answer later


class Child(Measured):
    """A context manager: a process that runs `target`, a function in this folder given as 'MODULE:FUNCTION'.

    prefix     a command to run the process under, like ('nice', '-n', '10')
    env        environment variables to add
    arguments  keyword arguments of the function
    """

    def __init__(self, target, *, prefix=(), env=None, **arguments):
        command = [*prefix, sys.executable, '-m', 'perf.faults.child']
        self.target = target
        self.received = bytearray()
        self.process = subprocess.Popen(
            [*command, target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), **(env or {})},
        )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def send(self, do, **arguments):
        """Send a command; `receive` returns its answer."""
        try:
            self.process.stdin.write(json.dumps({'do': do, **arguments}).encode() + b'\n')
            self.process.stdin.flush()
        except OSError:
            raise Failed(f'{self.target} has ended with status {self.process.wait()}') from None

    def receive(self, patience=PATIENCE):
        """Return the child's next answer. Raise `Failed` if the child raised, ended, or took too long."""
        until = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b'\n' not in self.received:
                if not selector.select(max(0, until - time.monotonic())):
                    raise Failed(f'{self.target} sent no answer for {patience:g} s')
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise Failed(f'{self.target} ended with status {self.process.wait()}')
                self.received += data
        line, _, rest = self.received.partition(b'\n')
        self.received = rest
        answer = json.loads(line)
        if isinstance(answer, dict) and 'raised' in answer:
            raise Failed(f'{self.target}: {answer["raised"]}')
        return answer

    def ask(self, do, patience=PATIENCE, **arguments):
        """Send a command and return its answer."""
        self.send(do, **arguments)
        return self.receive(patience)

    def kill(self):
        """Kill the child with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """Close the pipe, which makes the child end, and wait for it; kill it after 5 s."""
        with contextlib.suppress(OSError):  # the child may already have ended
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Control:
    """The child's side of the pipe."""

    def __init__(self):
        self.parts = bytearray()

    def send(self, answer):
        """Send an answer to the parent; JSON must be able to represent it."""
        sys.stdout.write(json.dumps(answer) + '\n')
        sys.stdout.flush()

    def serve(self, commands):
        """Run the parent's commands until the parent closes the pipe, in a child that does nothing else."""
        for line in sys.stdin:
            self.do(line, commands)

    def attach(self, r, commands):
        """Run the parent's commands on the reactor `r`, which stops when the parent closes the pipe."""
        os.set_blocking(0, False)
        r.watch_fd(0, selectors.EVENT_READ, self.read, commands)

    def read(self, handle, event, commands):
        data = os.read(0, 65536)
        if not data:
            handle.loop.stop()
        self.parts += data
        *lines, self.parts = self.parts.split(b'\n')
        for line in lines:
            self.do(line, commands)

    def do(self, line, commands):
        arguments = json.loads(line)
        try:
            answer = commands[arguments.pop('do')](**arguments)
            if answer is not LATER:
                self.send(answer)
        except Exception as exc:
            self.send({'raised': f'{type(exc).__name__}: {exc}'})


def main(target, arguments):
    module, _, function = target.partition(':')
    control = Control()
    try:
        getattr(importlib.import_module(f'perf.faults.{module}'), function)(control, **json.loads(arguments))
    except Exception as exc:
        control.send({'raised': f'{type(exc).__name__}: {exc}'})
        raise


if __name__ == '__main__':
    # Run the imported module, not this copy (`__main__`): the called function imports LATER from the module.
    importlib.import_module('perf.faults.child').main(*sys.argv[1:])
