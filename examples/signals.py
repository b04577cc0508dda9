"""Handle signals as callbacks in the loop, and end cleanly.

    $ python examples/signals.py
    pid 12345 waits for signals

From another terminal, `kill -HUP 12345` makes it print:

    SIGHUP: a server would read its configuration again here

Ctrl-C or `kill 12345` ends it:

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
        r.clear_signal_handlers()  # then nothing keeps the loop running, and Ctrl-C works as usual again

    r.add_signal_handler(signal.SIGHUP, reload)
    r.add_signal_handler(signal.SIGINT, finish, 'SIGINT')
    r.add_signal_handler(signal.SIGTERM, finish, 'SIGTERM')
    print(f'pid {os.getpid()} waits for signals', flush=True)


if __name__ == '__main__':
    reactor.run(main)
    print('ended')
