"""Switch a plain connection to TLS with STARTTLS, as mail servers do.

    $ python examples/starttls.py
    listening on 127.0.0.1:2525

In another terminal, type `noop` after the lines about the certificate. `openssl` sends EHLO and STARTTLS itself:

    $ openssl s_client -connect localhost:2525 -starttls smtp -quiet -crlf
    250 STARTTLS
    noop
    250 over TLSv1.3

The server knows only the commands that this example needs: EHLO, STARTTLS, NOOP and QUIT.
"""

import argparse
import signal
import ssl

from tls_echo import own_certificate

import reactor


def greet(conn):
    conn.data = b''  # the part of the next line that has been received so far
    conn.write(b'220 localhost ready\r\n')


def commands(conn, data):
    *lines, conn.data = (conn.data + data).split(b'\n')
    if len(conn.data) > 1000:
        conn.write(b'500 line too long\r\n')
        conn.close()
    for line in lines:
        if conn.closed:
            return
        command(conn, line.strip().upper(), last=line is lines[-1])


def command(conn, line, last):
    if line.startswith(b'EHLO'):
        conn.write(b'250 localhost\r\n' if conn.tls else b'250-localhost\r\n250 STARTTLS\r\n')
    elif line == b'STARTTLS' and not conn.tls:
        if not last or conn.data:  # plain text after STARTTLS may be an attacker's; do not treat it as encrypted
            conn.write(b'554 nothing may follow STARTTLS\r\n')
            conn.close()
            return
        conn.write(b'220 go ahead\r\n')
        conn.start_tls(context)
    elif line == b'NOOP':
        conn.write(b'250 over %s\r\n' % (conn.tls.version.encode() if conn.tls else b'plain text'))
    elif line == b'QUIT':
        conn.write(b'221 bye\r\n')
        conn.close()
    else:
        conn.write(b'502 unknown command\r\n')


def main(r, port):
    server = r.listen_tcp('127.0.0.1', port, commands, on_connect=greet, idle_timeout=60)
    for signum in signal.SIGINT, signal.SIGTERM:
        r.add_signal_handler(signum, r.stop)
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2525)
    port = options.parse_args().port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own_certificate())
    reactor.run(lambda r: main(r, port))
    print('bye')
