"""The service of the operator's drill: two workers, metrics of the parent, and answers that are owed until a drain."""

import sys

from reactor import framing, serve
from reactor.observe.metrics import serve_metrics


def on_line(conn, line):
    conn.busy = True  # `later` is answered never; the drain waits for it until its timeout


def main(r, listeners):
    r.listen_tcp(None, 0, framing.lines(on_line), sock=listeners[0])


def on_start(r, workers):
    metrics = serve_metrics(r, source=workers.stats)
    print(workers.addresses[0][1], metrics.address[1], flush=True)


if __name__ == '__main__':
    timeout, port = float(sys.argv[1]), int((*sys.argv, 0)[2])
    sys.exit(
        serve.run(
            main, workers=2, listen=[('127.0.0.1', port)], drain_timeout=timeout, lame_duck=0, on_start=on_start,
            log='text',
        )
    )  # fmt: skip
