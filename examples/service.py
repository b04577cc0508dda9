"""A service for a supervisor: it reports when it is ready, drains on SIGTERM, and fails `/ready` while it drains.

    $ python examples/service.py --listen 127.0.0.1:8080
    listening on 127.0.0.1:8080

In another terminal:

    $ curl http://127.0.0.1:8080/ready
    200 OK from process 12345

With `--workers 2`, two processes share the address, which can then be a Unix socket: `unix:/run/app.sock?mode=0660`.
With socket activation, the program serves on the sockets that it inherits:
`systemd-socket-activate -E PYTHONPATH -l 8080 python examples/service.py`. With `--metrics 127.0.0.1:9464`, it serves
metrics for Prometheus; this needs the package prometheus_client.

It answers GET requests with one line; `http_server.py` is a complete HTTP server. The folders haproxy/, nginx/, envoy/,
systemd/, container/, kubernetes/ and prometheus/ contain configurations for this program.
"""

import argparse
import os
import re
import signal
import sys
from functools import partial

import reactor
from reactor import framing, observe, serve
from reactor.serve import systemd


def listen(r, listeners, proxies=None, host=None, port=0):
    """Serve on these sockets; [None] is a new one for this host and port. Called once, or once in each worker."""

    def on_line(conn, line):
        if line:  # empty lines before a request are ignored (RFC 9112, section 2.2)
            conn.busy = True  # the connection is busy from the first line of a request until the answer
            conn.data = conn.data or line
        elif conn.data:
            request, conn.data = conn.data, None
            answer(conn, request)

    def answer(conn, request):
        ready = '503 Service Unavailable' if r.draining else '200 OK'
        status = ready if request.startswith(b'GET /ready ') else '200 OK' if request[:4] == b'GET ' else '501 No'
        last = r.draining or status[0] == '5'
        text = f'{status} from process {os.getpid()}\n'
        end = '\r\nConnection: close' if last else ''
        conn.write(f'HTTP/1.1 {status}\r\nContent-Length: {len(text)}{end}\r\n\r\n{text}'.encode())
        conn.busy = False
        if last:
            conn.close()

    for sock in listeners:
        server = r.listen_tcp(host, port, framing.lines(on_line), sock=sock, idle_timeout=60, proxy_protocol=proxies)
        print(f'listening on {shown(server.address)}', flush=True)


def shown(address):
    if isinstance(address, tuple):
        return f'[{address[0]}]:{address[1]}' if ':' in address[0] else f'{address[0]}:{address[1]}'
    return os.fsdecode(address).replace('\0', '@')  # the path of a Unix socket


def host_and_port(text):
    found = re.fullmatch(r'(?:\[(.+)\]|([^:]*)):(\d+)', text)
    if not found or int(found[3]) > 65535:
        sys.exit(f'error: {text!r} is not HOST:PORT or [IPv6]:PORT; for a Unix socket, add --workers 1')
    return found[1] or found[2] or None, int(found[3])


def monitor(r, address, source=None):
    if address:
        host, port = host_and_port(address)
        observe.serve_metrics(r, host, port, source)


def alone(r, args):
    def stop():
        systemd.stopping()
        r.drain(args.drain_timeout, args.lame_duck)

    def reload():
        systemd.reloading()  # a service would read its configuration again here
        systemd.ready()

    inherited = [sock for _, sock in systemd.inherited_sockets()]
    r.add_signal_handler(signal.SIGTERM, stop)
    r.add_signal_handler(signal.SIGHUP, reload)
    host, port = (None, 0) if inherited else host_and_port(args.listen)
    listen(r, inherited or [None], args.proxy_protocol, host, port)
    monitor(r, args.metrics)
    systemd.watchdog(r)
    systemd.ready()


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--listen', default='127.0.0.1:8080', metavar='HOST:PORT', help='unless sockets are inherited')
    options.add_argument('--metrics', metavar='HOST:PORT', help='serve /metrics for Prometheus on another port')
    options.add_argument('--workers', type=int, default=0, help='number of processes; 0: only this process')
    options.add_argument('--drain-timeout', type=float, default=30, help='seconds that a drain can take')
    options.add_argument('--lame-duck', type=float, default=0, help='seconds to keep accepting clients during a drain')
    options.add_argument('--proxy-protocol', nargs='+', metavar='NETWORK', help='networks with trusted PROXY headers')
    args = options.parse_args()
    times = {'drain_timeout': args.drain_timeout, 'lame_duck': args.lame_duck}
    try:
        if args.workers:
            main = partial(listen, proxies=args.proxy_protocol)
            times['on_start'] = lambda r, workers: monitor(r, args.metrics, workers.stats)
            sys.exit(serve.run(main, workers=args.workers, listen=[args.listen], **times))
        reactor.run(lambda r: alone(r, args))
    except OSError as exc:
        sys.exit(f'error: {exc}')
    except KeyboardInterrupt:
        print('bye')
