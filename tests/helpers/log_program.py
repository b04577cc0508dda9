"""A program with workers that log, for the tests of log lines: `python tests/helpers/log_program.py SETTINGS`.

A worker logs each line that it receives, at the level INFO, and answers with its process id and the number of its slot.
`raise TEXT` raises an exception in the callback. SETTINGS is a JSON object: `run` has options of `serve.run`, `fail` is
a path, and while it exists, a worker's `main` raises. The parent prints its process id and the address.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from reactor import framing, serve

SETTINGS = json.loads(sys.argv[1])


def main(r, listeners):
    if os.path.exists(SETTINGS.get('fail', '')):
        raise ValueError('failed because the test requested it')

    def on_line(conn, line):
        text = line.decode('utf-8', 'surrogateescape')
        if text.startswith('raise '):
            raise ValueError(text)
        logging.getLogger('app').info('received %s', text, extra={'size': len(line)})
        conn.write(b'%d %d\n' % (os.getpid(), listeners.slot))

    r.listen_tcp(None, 0, framing.lines(on_line, limit=1 << 20), sock=listeners[0])


def on_start(r, workers):
    logging.getLogger('app').info('the parent has started')
    print(json.dumps([os.getpid(), workers.addresses[0][1]]), flush=True)


if __name__ == '__main__':
    sys.exit(
        serve.run(
            main, listen=['127.0.0.1:0'], drain_timeout=2, lame_duck=0, on_start=on_start, **SETTINGS.get('run', {})
        )
    )
