"""A service as its manager wants it: ready when it listens, `/ready` turns red while it drains, SIGTERM loses nothing.

    python examples/service.py --listen 127.0.0.1:8080                     one process
    python examples/service.py --listen 127.0.0.1:8080 --workers 2         several on one port
    systemd-socket-activate -l 8080 python examples/service.py             listening before it runs

It answers GET with a line (`http_server.py` knows all of HTTP). The folders systemd/ and kubernetes/ beside it have
units and a manifest for it.
"""

import argparse
import os
import signal
import socket
import sys
from functools import partial

import reactor
from reactor import framing, serve
from reactor.serve import systemd


def listen(r, listeners, proxies=None):
    """In the one process, or in each worker."""

    def on_line(conn, line):
        if line:  # an empty one before a request is none (RFC 9112, section 2.2)
            conn.busy = True  # from the first line of a request to its answer
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
        server = r.listen_tcp(None, 0, framing.lines(on_line), sock=sock, idle_timeout=60, proxy_protocol=proxies)
        print(f'listening on {server.address[0]}:{server.address[1]}', flush=True)


def alone(r, args):
    def stop():
        systemd.stopping()
        r.drain(args.drain_timeout, args.lame_duck)

    def reload():
        systemd.reloading()  # here a service would read its configuration again
        systemd.ready()

    inherited = [sock for _, sock in systemd.inherited_sockets()]
    host, _, port = args.listen.rpartition(':')
    listen(r, inherited or [socket.create_server((host, int(port)))], args.proxy_protocol)
    r.add_signal_handler(signal.SIGTERM, stop)
    r.add_signal_handler(signal.SIGHUP, reload)
    systemd.watchdog(r)
    systemd.ready()


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--listen', default='127.0.0.1:8080', metavar='HOST:PORT', help='without inherited sockets')
    options.add_argument('--workers', type=int, default=0)
    options.add_argument('--drain-timeout', type=float, default=30, help='seconds for the last answers')
    options.add_argument('--lame-duck', type=float, default=0, help='seconds of it in which clients may still come')
    options.add_argument('--proxy-protocol', nargs='+', metavar='NETWORK', help='whose PROXY headers tell the clients')
    args = options.parse_args()
    times = {'drain_timeout': args.drain_timeout, 'lame_duck': args.lame_duck}
    if args.workers:
        main = partial(listen, proxies=args.proxy_protocol)
        sys.exit(serve.run(main, workers=args.workers, listen=[args.listen], **times))
    try:
        reactor.run(lambda r: alone(r, args))
    except KeyboardInterrupt:
        print('bye')
