"""A TLS service for several names, whose certificates are renewed while it runs.

    python examples/tls_service.py --name example.org cert.pem key.pem --name '*.example.net' c.pem k.pem
    curl --cacert authority.pem --resolve example.org:8443:127.0.0.1 https://example.org:8443/

Give it SIGHUP when the files are new (certbot's --deploy-hook, `systemctl reload`): it takes all of them, or says what
is wrong with one and goes on with those that it has. Connections do not notice. `--name default` is for all others.
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
    return time.strftime('certificates good until %Y-%m-%d %H:%M UTC', time.gmtime(certificates.expires))


def main(r, args):
    files = {None if name == 'default' else name: (cert, key) for name, cert, key in args.name}
    certificates = Certificates(files, lambda context: context.set_alpn_protocols(['http/1.1']))
    server = r.listen_tcp('127.0.0.1', args.port, answer, ssl=certificates.context, idle_timeout=60)
    r.add_signal_handler(signal.SIGHUP, renew, certificates)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)
    systemd.ready(describe(certificates))
    systemd.watchdog(r)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8443)
    files = ('NAME', 'CERTIFICATE', 'KEY')
    options.add_argument('--name', nargs=3, action='append', required=True, metavar=files, help='files in PEM format')
    args = options.parse_args()
    try:
        reactor.run(lambda r: main(r, args))
    except KeyboardInterrupt:
        print('bye')
