"""Handle signals in callbacks that run in the loop, and exit cleanly.

    $ python examples/signals.py
    pid 12345 is waiting for signals

From another terminal, `kill -HUP 12345` makes it print:

    SIGHUP: a server would read its configuration again here

Ctrl-C or `kill 12345` ends the program:

    SIGINT: finishing
    ended
"""

import os
import signal

import reactor


def main(r):
    def reload():
        print('SIGHUP: a server would read its configuration again here', flush=True)

    def finish(name):
        print(f'{name}: finishing', flush=True)
        r.clear_signal_handlers()  # now nothing keeps the loop running, and Ctrl-C works as usual again

    r.add_signal_handler(signal.SIGHUP, reload)
    r.add_signal_handler(signal.SIGINT, finish, 'SIGINT')
    r.add_signal_handler(signal.SIGTERM, finish, 'SIGTERM')
    print(f'pid {os.getpid()} is waiting for signals', flush=True)


if __name__ == '__main__':
    reactor.run(main)
    print('ended')
