"""The code that all Python servers here share: the bytes of their replies, and their command line.

The replies are defined once, so no peer can be faster by sending less. Nothing in this module runs while requests are
answered. The servers in C and in JavaScript have copies of the replies, and a test checks that the copies are equal.
"""

import argparse

DELAY = 1.0  # seconds until the reply of the seed workload, unless --delay is given
WAITING = 3600.0  # seconds until the reply of `pending`; no measurement takes this long


def http(body, close=False):
    connection = b'Connection: close\r\n' if close else b''
    return b'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %d\r\n\r\n%s' % (
        connection,
        len(body),
        body,
    )


REPLY = http(b'a reply of one hundred bytes altog.')
LAST_REPLY = http(b'the reply and the end of it', close=True)
LATE_REPLY = b'HTTP/1.1 200 OK\r\nDate: Wed, 03 Oct 2012 23:43:10 GMT\r\nContent-Type: text/plain\r\n'
LATE_REPLY += b'Content-Length: 9\r\n\r\nomglolwtf'
LARGE_REPLY = http(b'x' * (1 << 20))
MESSAGE = b'm' * 1024
HEAD, BODY = REPLY[:-35], REPLY[-35:]
REQUEST_END = b'\r\n\r\n'  # a server that counts requests counts these; the loads never split one
SMALL, SMALLS = b'a piece of text\n', 32  # `small` answers with this many writes
CHUNK = b'c' * (256 << 10)
CHAIN = 1000  # calls to call_soon before `chain` replies; each call is made by the previous callback


def arguments():
    """Return the port, the workload, and the delay of late replies in seconds, from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--workload', default='keepalive')
    parser.add_argument('--delay', type=float, default=DELAY)
    args = parser.parse_args()
    return args.port, args.workload, WAITING if args.workload == 'pending' else args.delay


def server_context():
    """Return a TLS 1.3 context with a new P-256 key; every peer uses this kind of key."""
    import ssl  # imported here, because the module would add to the memory of servers without TLS
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cert, key = f'{folder}/cert.pem', f'{folder}/key.pem'
        kind = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-subj', '/CN=localhost')
        command = ['openssl', 'req', '-x509', *kind, '-days', '1', '-keyout', key, '-out', cert]
        subprocess.run(command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(cert, key)
    return context


def bound():
    """Return the path for the server of `unix`, in a new folder, which is removed when this process ends."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix='compare-')
    atexit.register(shutil.rmtree, folder)
    return f'{folder}/socket'


def deferred(port):
    """Return a listening socket that reports a connection only when its first bytes have arrived, for `defer`."""
    import socket

    sock = socket.create_server(('127.0.0.1', port), backlog=4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    return sock


def listening(address):
    """Print the address, which is a pair or a path: clients can connect now."""
    print(f'listening on {address if isinstance(address, str) else f"{address[0]}:{address[1]}"}', flush=True)
