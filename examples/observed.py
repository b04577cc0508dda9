"""Echo on all processors with three windows to look in: for a person, for a browser, for Prometheus.

Run it:       python examples/observed.py                 (--port --workers --control --page --metrics)
Look in:      python -m reactor.observe /tmp/observed stats phases --watch 1
              a browser at http://127.0.0.1:9080
              curl http://127.0.0.1:9464/metrics          with --metrics; pip install 'selectors-reactor[metrics]'
End it:       python -m reactor.observe /tmp/observed drain, or Ctrl-C

All three show every worker: they are in the parent, which knows what each told last.
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
    """In each worker."""
    r.listen_tcp(None, 0, on_data, on_drain=on_drain, sock=listeners[0])


def on_start(r, workers):
    """In the parent."""
    observe.serve_control(r, args.control, source=workers.stats, drain=lambda timeout, lame_duck: workers.drain())
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
