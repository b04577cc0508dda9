"""Runs a command and prefixes each line it prints, its errors apart; ends as it ends. Ctrl-C asks it to end.

Run it:    python examples/process_tail.py ping -c 3 127.0.0.1
           python examples/process_tail.py tail -f /var/log/syslog
"""

import argparse
import signal
import sys

import reactor

LONGEST_LINE = 65536  # bytes; what is longer is shown in pieces


def show_lines(prefix):
    def on_data(pipe, data):
        *lines, pipe.data = ((pipe.data or b'') + data).split(b'\n')
        if len(pipe.data) > LONGEST_LINE:
            lines.append(pipe.data)
            pipe.data = b''
        for line in lines:
            print(prefix + line.decode(errors='replace'), flush=True)

    def on_close(pipe, exc):
        if pipe.data:  # a last line without its end
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
