"""A program with workers and a control socket in its parent: `python tests/helpers/observed_program.py SETTINGS`.

A worker answers each line with its process id and its slot. `wait` is never answered, so that the worker drains until
its timeout. `notifiers N` opens N handles, `broken` opens a handle whose description raises, and `block N` blocks the
worker for N seconds. SETTINGS is a JSON object: `control`, the path of the control socket; `workers`; `hang`, a path:
while it exists, `main` does not return. The parent prints the port.
"""

from __future__ import annotations

import json
import os
import sys
import time

from reactor import Notifier, framing, observe, serve

SETTINGS = json.loads(sys.argv[1])
KEPT = []


class Broken(Notifier):
    __slots__ = ()

    def waits_for(self):
        raise ValueError('broken')


def main(r, listeners):
    while os.path.exists(SETTINGS.get('hang', '')):
        time.sleep(0.01)

    def on_line(conn, line):
        word, _, number = line.decode().partition(' ')
        if word == 'wait':
            conn.busy = True
        elif word == 'block':
            time.sleep(float(number))
        elif word == 'notifiers':
            KEPT.extend(r.notifier(int) for _ in range(int(number)))
        elif word == 'broken':
            KEPT.append(r.notifier(int))
            KEPT[-1].__class__ = Broken
        conn.write(b'%d %d\n' % (os.getpid(), listeners.slot))

    r.listen_tcp(None, 0, framing.lines(on_line), sock=listeners[0])


def on_start(r, workers):
    observe.serve_control(r, SETTINGS['control'], workers=workers)
    print(workers.addresses[0][1], flush=True)


if __name__ == '__main__':
    options = {'drain_timeout': 20, 'lame_duck': 0, 'hang_timeout': None, 'log': 'text'}
    sys.exit(serve.run(main, workers=SETTINGS['workers'], listen=['127.0.0.1:0'], on_start=on_start, **options))
