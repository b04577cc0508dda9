"""A TLS service with several host names, whose certificates can be renewed while it runs.

    $ python examples/tls_service.py --name default cert.pem key.pem --name '*.example.net' cert2.pem key2.pem
    listening on 127.0.0.1:8443

In another terminal:

    $ curl --cacert authority.pem https://localhost:8443/
    TLSv1.3 with TLS_AES_256_GCM_SHA384

After SIGHUP (from certbot's --deploy-hook or `systemctl reload`), the program reads all certificate files again:

    certificates valid until 2027-02-27 11:30 UTC

If one of the files is invalid, the program prints why, and keeps the old certificates. Open connections are not
affected. `--name default` is for clients that ask for no name, or for a name that has no certificate.

On SIGTERM, the program answers the clients that it has accepted, and ends. Ctrl-C ends it at once.
"""

import argparse
import signal
import time

import reactor
from reactor.serve import systemd
from reactor.serve.certificates import Certificates


def answer(conn, data):
    text = f'{conn.tls.version} with {conn.tls.cipher}\n'.encode()
    conn.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b' % (len(text), text))
    conn.close()


def renew(certificates):
    systemd.reloading()
    try:
        certificates.reload()
        print(describe(certificates), flush=True)
    except reactor.ReactorError as exc:
        print(exc, flush=True)
    systemd.ready(describe(certificates))


def describe(certificates):
    return time.strftime('certificates valid until %Y-%m-%d %H:%M UTC', time.gmtime(certificates.expires))


def main(r, args):
    files = {None if name == 'default' else name: (cert, key) for name, cert, key in args.name}
    certificates = Certificates(files, lambda context: context.set_alpn_protocols(['http/1.1']))
    server = r.listen_tcp('127.0.0.1', args.port, answer, ssl=certificates.context, idle_timeout=60)
    r.add_signal_handler(signal.SIGHUP, renew, certificates)
    r.add_signal_handler(signal.SIGINT, r.stop)
    r.add_signal_handler(signal.SIGTERM, r.drain, args.drain_timeout)
    r.add_drain_callback(lambda seconds: systemd.stopping())
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)
    systemd.ready(describe(certificates))
    systemd.watchdog(r)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8443)
    options.add_argument('--drain-timeout', type=float, default=10, help='seconds that the end can take (default 10)')
    files = ('NAME', 'CERTIFICATE', 'KEY')
    options.add_argument('--name', nargs=3, action='append', required=True, metavar=files, help='files in PEM format')
    args = options.parse_args()
    reactor.run(lambda r: main(r, args))
    print('bye')
