"""Run a command and prefix each line of its output with its process id; lines on standard error get a `!`.

    $ python examples/process_tail.py sh -c 'echo one; echo two >&2'
    [12345] one
    [12345] ! two

The program ends when the command ends, with the same exit status (128 plus the signal's number if a signal killed it).
Ctrl-C sends SIGTERM to the command.
"""

import argparse
import signal
import sys

import reactor

LONGEST_LINE = 65536  # bytes; a longer line is printed in pieces


def show_lines(prefix):
    def on_data(pipe, data):
        *lines, pipe.data = ((pipe.data or b'') + data).split(b'\n')
        if len(pipe.data) > LONGEST_LINE:
            lines.append(pipe.data)
            pipe.data = b''
        for line in lines:
            print(prefix + line.decode(errors='replace'), flush=True)

    def on_close(pipe, exc):
        if pipe.data:  # the last line did not end with a line break
            print(prefix + pipe.data.decode(errors='replace'), flush=True)

    return on_data, on_close


def main(r, command, ended):
    def on_exit(process, code, signum):
        ended.append(code if signum is None else 128 + signum)
        interrupt.close()

    process = r.spawn(command, stdin=reactor.DEVNULL, stdout=reactor.PIPE, stderr=reactor.PIPE, on_exit=on_exit)
    process.stdout.on_data, process.stdout.on_close = show_lines(f'[{process.pid}] ')
    process.stderr.on_data, process.stderr.on_close = show_lines(f'[{process.pid}] ! ')
    interrupt = r.add_signal_handler(signal.SIGINT, process.terminate)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('command', nargs=argparse.REMAINDER)
    command = options.parse_args().command or options.error('which command?')
    ended = []
    try:
        reactor.run(lambda r: main(r, command, ended))
    except OSError as exc:
        sys.exit(f'process_tail.py: {command[0]}: {exc.strerror}')
    sys.exit(ended[0])
