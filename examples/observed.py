"""An echo server that runs on all processors and can be watched from a terminal, in a browser and by Prometheus.

    $ python examples/observed.py
    page at http://127.0.0.1:9080
    listening on 127.0.0.1:7007

In another terminal:

    $ python -m reactor.observe /tmp/observed stats phases --watch 1
    $ python -m reactor.observe /tmp/observed handles why-alive

With `--metrics 9464`, `curl http://127.0.0.1:9464/metrics` shows the metrics for Prometheus; this needs the package
prometheus_client. Ctrl-C, SIGTERM or `python -m reactor.observe /tmp/observed drain` ends the program.

The page, the socket and the metrics all cover every worker. They run in the parent process, to which each worker
reports. The commands of the socket ask every worker; a worker that hangs is named.
"""

import argparse
import sys

from reactor import observe, serve


def on_data(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def main(r, listeners):
    """Listen on the worker's socket; called in each worker."""
    r.listen_tcp(None, 0, on_data, on_drain=on_drain, sock=listeners[0])


def on_start(r, workers):
    """Serve the page, the socket and the metrics; called in the parent."""
    observe.serve_control(r, args.control, workers=workers, drain=workers.drain)
    page = observe.serve_page(r, port=args.page, source=workers.stats, about='examples/observed.py.')
    print(f'page at http://127.0.0.1:{page.address[1]}')
    if args.metrics is not None:
        metrics = observe.serve_metrics(r, port=args.metrics, source=workers.stats)
        print(f'metrics at http://127.0.0.1:{metrics.address[1]}/metrics')
    print(f'listening on 127.0.0.1:{workers.addresses[0][1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=7007)
    options.add_argument('--workers', type=int)
    options.add_argument('--control', default='/tmp/observed')
    options.add_argument('--page', type=int, default=9080)
    options.add_argument('--metrics', type=int)
    args = options.parse_args()
    here = [('127.0.0.1', args.port)]
    sys.exit(serve.run(main, workers=args.workers, listen=here, drain_timeout=10, lame_duck=0, on_start=on_start))
