"""Signals, as callbacks in the loop, and a clean end.

Run it:    python examples/signals.py
Tell it:   kill -HUP its pid, and it says so; Ctrl-C or kill, and it finishes in good order
"""

import os
import signal

import reactor


def main(r):
    def reload():
        print('SIGHUP: this is where a server would read its configuration again', flush=True)

    def finish(name):
        print(f'{name}: finishing', flush=True)
        r.clear_signal_handlers()  # nothing keeps the loop running now; a second Ctrl-C ends at once

    r.add_signal_handler(signal.SIGHUP, reload)
    r.add_signal_handler(signal.SIGINT, finish, 'SIGINT')
    r.add_signal_handler(signal.SIGTERM, finish, 'SIGTERM')
    print(f'pid {os.getpid()} waits for signals', flush=True)


if __name__ == '__main__':
    reactor.run(main)
    print('ended')
