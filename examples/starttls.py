"""A line server that goes over to TLS in the middle of a connection: STARTTLS, as mail servers do it.

    python examples/starttls.py --port 2525
    openssl s_client -connect localhost:2525 -starttls smtp -quiet -crlf

It speaks as much SMTP as that needs: EHLO, STARTTLS, NOOP, QUIT.
"""

import argparse
import ssl

from tls_echo import own_certificate

import reactor


def greet(conn):
    conn.data = b''  # what has come of the next line
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
        if not last or conn.data:  # somebody in between may have put it there: it must not be taken for encrypted
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
    print(f'listening on 127.0.0.1:{server.address[1]}', flush=True)


if __name__ == '__main__':
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--port', type=int, default=2525)
    port = options.parse_args().port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own_certificate())
    try:
        reactor.run(lambda r: main(r, port))
    except KeyboardInterrupt:
        print('bye')
