"""A program with workers for the tests of `reactor.serve`: `python tests/helpers/serve_program.py SETTINGS`.

A worker answers each line with its process id and the line. `wait N` is answered after N seconds, `block N` blocks the
worker for N seconds, `lock N` also locks its log, and `?` is answered with the state of the process.

SETTINGS is a JSON object. `fail`, a path: while it exists, a worker's `main` raises. `hang`, a path: while it exists,
`main` does not return. `slots`, numbers: only the workers of these slots fail or hang. `deaf`: SIGTERM is ignored, by
`add_signal_handler` ('reactor') or by the module signal ('python'). `goodbye`: at the start of a drain, each client
gets a line with the process id, 'goodbye', and the seconds that are left. `go`, a path: the program changes to this
directory first. `watch`, a path: the parent answers each client of this Unix socket with the state of the workers.
`drain`, times: on SIGALRM the parent drains the workers with these times. SIGUSR1 stops the parent's reactor, and
SIGUSR2 shuts it down, unless `stray`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings

from reactor import framing, serve

SETTINGS = json.loads(sys.argv[1])
SLOT = json.loads(os.environ.get('REACTOR_WORKER', '{}')).get('slot')
clients = []


def on_line(conn, line):
    if line == b'?':
        fds = [int(name) for name in os.listdir('/proc/self/fd')]
        variables = [name for name in os.environ if name.startswith('REACTOR')]
        state = {'argv': sys.argv, 'flags': [*sys.warnoptions, *sorted(sys._xoptions)], 'variables': variables}
        sock = conn.sockname
        state |= {'pid': os.getpid(), 'fds': len(fds), 'inheritable': sum(map(inherited, fds)), 'sock': sock}
        conn.write(json.dumps(state).encode() + b'\n')
    elif line.startswith(b'block '):
        time.sleep(float(line[6:]))
    elif line.startswith(b'lock '):
        with logging.lastResort.lock:
            time.sleep(float(line[5:]))
    elif line.startswith(b'wait '):
        conn.busy = True
        conn.loop.call_later(float(line[5:]), answer, conn, line)
    else:
        answer(conn, line)


def inherited(fd):
    try:
        return fd > 2 and os.get_inheritable(fd)
    except OSError:
        return False  # this descriptor was used to list the directory, and has been closed since


def answer(conn, line):
    if not conn.closed:
        conn.write(b'%d %s\n' % (os.getpid(), line))
        conn.busy = False


def main(r, listeners):
    if SLOT in SETTINGS.get('slots', [SLOT]) and os.path.exists(SETTINGS.get('fail', '')):
        raise ValueError('failed because the test requested it')
    while SLOT in SETTINGS.get('slots', [SLOT]) and os.path.exists(SETTINGS.get('hang', '')):
        time.sleep(0.01)
    if SETTINGS.get('deaf') == 'reactor':
        r.add_signal_handler(signal.SIGTERM, int)
    if SETTINGS.get('deaf') == 'python':
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if SETTINGS.get('goodbye'):
        r.add_drain_callback(say_goodbye)
    for sock in listeners:
        r.listen_tcp(None, 0, framing.lines(on_line), on_connect=clients.append, on_close=forget, sock=sock)


def forget(conn, exc):
    clients.remove(conn)


def say_goodbye(seconds):
    for conn in clients:
        conn.write(b'%d goodbye %.1f\n' % (os.getpid(), seconds))


def on_start(r, workers):

    def on_connect(conn):
        state = {
            'pids': workers.pids(),
            'stats': workers.stats(),
            'health': workers.health().as_dict(),
            'cpu': time.process_time(),
            'pid': os.getpid(),
        }
        conn.write(json.dumps(state).encode())
        conn.close()

    r.listen_unix(SETTINGS['watch'], on_connect=on_connect)
    if not SETTINGS.get('stray'):
        r.add_signal_handler(signal.SIGUSR1, r.stop)
        r.add_signal_handler(signal.SIGUSR2, r.drain, 0.1)
    if 'drain' in SETTINGS:
        r.add_signal_handler(signal.SIGALRM, workers.drain, *SETTINGS['drain'])
    print(json.dumps(workers.addresses), flush=True)


if __name__ == '__main__':
    warnings.simplefilter('error')
    os.chdir(SETTINGS.get('go', '.'))
    sys.exit(serve.run(main, on_start=on_start, **SETTINGS['run']))
