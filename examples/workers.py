"""Echo on all processors: several processes on one port, each with a reactor of its own.

Run it:    python examples/workers.py         (--port 7007 --workers N, by default one for each processor)
Talk:      nc 127.0.0.1 7007                  who serves you is told first, and every line comes back
Try:       kill -HUP PARENT                   new workers, and nobody is refused meanwhile
           kill -TTIN PARENT                  one more; -TTOU: one less
           kill -9 WORKER                     another one serves who waited for it

Ctrl-C drains: nobody new, and it ends with the last client, or after ten seconds. Again: at once.
"""

import argparse
import os
import sys

from reactor import serve


def on_connect(conn):
    conn.write(b'worker %d\n' % os.getpid())


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def main(r, listeners):
    """In each worker."""
    for sock in listeners:
        r.listen_tcp(None, 0, on_data, on_connect=on_connect, on_drain=on_drain, sock=sock)


def on_start(r, workers):
    """In the parent."""
    print(f'workers of {os.getpid()} listening on 127.0.0.1:{workers.addresses[0][1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    options.add_argument('--workers', type=int)
    args = options.parse_args()
    here = [('127.0.0.1', args.port)]
    sys.exit(serve.run(main, workers=args.workers, listen=here, drain_timeout=10, on_start=on_start))
