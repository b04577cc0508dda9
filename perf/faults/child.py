"""Part of a figure in a process of its own: a function, started here, run there, spoken to in lines of JSON.

Owns the process and both ends of the conversation. Knows no figure. The rule: a child ends when its parent does or
stops speaking to it, and an exception in it is the parent's, too.

As a program it is the child's side: `python -m perf.faults.child MODULE:FUNCTION ARGUMENTS` calls
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

PATIENCE = 120  # seconds for an answer, where nothing else is said
LATER = object()  # returned by a command whose answer is said when it is there


class Child(Measured):
    """A function of a module of this folder, given as 'MODULE:FUNCTION', in a new Python; a context manager.

    prefix   a command to run it under (taskset, faketime, prlimit ...)
    env      more environment
    sockets  of ours that it gets, by their numbers
    """

    def __init__(self, target, *, prefix=(), env=None, sockets=(), **arguments):
        command = [*prefix, sys.executable, '-m', 'perf.faults.child']
        self.target = target
        self.heard = bytearray()
        self.process = subprocess.Popen(
            [*command, target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), **(env or {})},
            pass_fds=[sock.fileno() for sock in sockets],
        )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def tell(self, do, **arguments):
        """Have it do something; the answer is heard later."""
        try:
            self.process.stdin.write(json.dumps({'do': do, **arguments}).encode() + b'\n')
            self.process.stdin.flush()
        except OSError:
            raise Failed(f'{self.target} has ended: {self.process.wait()}') from None

    def hear(self, patience=PATIENCE):
        """Its next answer. `Failed` when it raised, ended, or took longer."""
        until = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b'\n' not in self.heard:
                if not selector.select(max(0, until - time.monotonic())):
                    raise Failed(f'{self.target} said nothing for {patience:g} s')
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise Failed(f'{self.target} ended with status {self.process.wait()}')
                self.heard += data
        line, _, rest = self.heard.partition(b'\n')
        self.heard = rest
        answer = json.loads(line)
        if isinstance(answer, dict) and 'raised' in answer:
            raise Failed(f'{self.target}: {answer["raised"]}')
        return answer

    def ask(self, do, patience=PATIENCE, **arguments):
        """Have it do something, and wait for the answer."""
        self.tell(do, **arguments)
        return self.hear(patience)

    def kill(self):
        """End it as no program can prevent."""
        self.process.kill()
        self.process.wait()

    def close(self):
        with contextlib.suppress(OSError):  # it may be gone
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Control:
    """The child's side of the conversation."""

    def __init__(self):
        self.parts = bytearray()

    def say(self, answer):
        """Send the parent something that JSON can say."""
        sys.stdout.write(json.dumps(answer) + '\n')
        sys.stdout.flush()

    def serve(self, commands):
        """Do what the parent says until it says nothing more, for children that wait for it and nothing else."""
        for line in sys.stdin:
            self.do(line, commands)

    def attach(self, r, commands):
        """The same beside all that a reactor does, which stops when the parent is gone."""
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
                self.say(answer)
        except Exception as exc:
            self.say({'raised': f'{type(exc).__name__}: {exc}'})


def main(target, arguments):
    module, _, function = target.partition(':')
    control = Control()
    try:
        getattr(importlib.import_module(f'perf.faults.{module}'), function)(control, **json.loads(arguments))
    except Exception as exc:
        control.say({'raised': f'{type(exc).__name__}: {exc}'})
        raise


if __name__ == '__main__':
    # By its name, as what it runs knows it, or there would be two of everything here.
    importlib.import_module('perf.faults.child').main(*sys.argv[1:])
