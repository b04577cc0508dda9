"""An echo server over TLS.

Without --cert, the server makes a self-signed certificate for localhost, valid for one day.

    $ python examples/tls_echo.py
    listening on 127.0.0.1:8443

In another terminal, after some lines about the certificate, each line that you type comes back:

    $ openssl s_client -connect localhost:8443 -quiet
    hello
    hello

With --ca, clients need a certificate from that authority, and the server greets them with its subject.
"""

import argparse
import atexit
import shutil
import signal
import ssl
import subprocess
import tempfile

import reactor


def own_certificate():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    cert, key = f'{folder}/cert.pem', f'{folder}/key.pem'
    names = ('-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1')
    curve = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes')
    command = ['openssl', 'req', '-x509', *curve, '-days', '1', *names, '-keyout', key, '-out', cert]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return cert, key


def greet(conn):
    subject = (conn.tls.peer_certificate or {}).get('subject')
    if subject:
        conn.write(f'hello {subject[-1][0][1]}\n'.encode())


def echo(conn, data):
    if not conn.write(data):
        conn.pause_reading()


def on_drain(conn):
    conn.resume_reading()


def context(cert, key, ca):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*((cert, key) if cert else own_certificate()))
    if ca:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def main(r, args):
    secure = context(args.cert, args.key, args.ca)
    server = r.listen_tcp('127.0.0.1', args.port, echo, on_connect=greet, on_drain=on_drain, ssl=secure)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=8443)
    for name in '--cert', '--key', '--ca':
        options.add_argument(name, help='a file in PEM format')
    args = options.parse_args()
    reactor.run(lambda r: main(r, args))
    print('bye')
