"""A Cassandra node that answers what the driver asks first, and `SELECT n`.

Run it as `cql_node.py PORT`, or for TLS as `cql_node.py PORT CERTIFICATE KEY`.

It speaks version 4 of the protocol (native_protocol_v4.spec in Cassandra's source). A query `SELECT 17` gets a row with
17, `SLEEP` gets no answer, and `HUGE n` gets a row with n bytes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import threading
import uuid

ERROR, READY, OPTIONS, SUPPORTED, STARTUP, RESULT, QUERY, REGISTER = 0, 2, 5, 6, 1, 8, 7, 11
VARCHAR, INT, UUID, INET, BLOB = 0x0D, 0x09, 0x0C, 0x10, 0x03
LOCAL = [
    ('key', VARCHAR, b'local'),
    ('cluster_name', VARCHAR, b'test'),
    ('data_center', VARCHAR, b'dc1'),
    ('rack', VARCHAR, b'rack1'),
    ('release_version', VARCHAR, b'4.0.0'),
    ('partitioner', VARCHAR, b'org.apache.cassandra.dht.Murmur3Partitioner'),
    ('host_id', UUID, uuid.UUID(int=1).bytes),
    ('schema_version', UUID, uuid.UUID(int=2).bytes),
    ('rpc_address', INET, socket.inet_aton('127.0.0.1')),
    ('broadcast_address', INET, socket.inet_aton('127.0.0.1')),
]


def string(text):
    return struct.pack('>H', len(text)) + text.encode()


WRONG_VERSION = struct.pack('>i', 0x000A) + string('Invalid or unsupported protocol version (5); the highest is 4')


def rows(columns, count=1):
    """Encode a result with this row, `count` times."""
    head = struct.pack('>iii', 2, 1, len(columns)) + string('system') + string('table')
    names = b''.join(string(name) + struct.pack('>H', kind) for name, kind, _ in columns)
    row = b''.join(struct.pack('>i', len(value)) + value for _, _, value in columns)
    return head + names + struct.pack('>i', count) + row * count


def answer(opcode, body):
    """Return the opcode and the body of the answer, or None for no answer."""
    if opcode == OPTIONS:
        versions = string('CQL_VERSION') + struct.pack('>H', 1) + string('3.4.5')
        return SUPPORTED, struct.pack('>H', 2) + versions + string('COMPRESSION') + struct.pack('>H', 0)
    if opcode in (STARTUP, REGISTER):
        return READY, b''
    if opcode != QUERY:
        return ERROR, struct.pack('>i', 0x000A) + string(f'opcode {opcode} is not known here')
    size = struct.unpack_from('>i', body)[0]
    verb, *rest = body[4 : 4 + size].decode().split()
    if verb == 'SLEEP':
        return None
    if verb == 'HUGE':
        return RESULT, rows([('data', BLOB, b'x' * int(rest[0]))])
    if rest[0].isdigit():
        return RESULT, rows([('n', INT, struct.pack('>i', int(rest[0])))])
    if 'system.local' in rest:
        return RESULT, rows(LOCAL)
    if 'system.peers' in rest or 'system_schema.' in ' '.join(rest):
        return RESULT, rows(LOCAL, count=0)
    return ERROR, struct.pack('>i', 0x2200) + string('there is no such table')


def read(stream, size):
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(sock, tls):
    if tls is not None:
        sock = tls.wrap_socket(sock, server_side=True)
    with sock, sock.makefile('rb') as stream:
        try:
            while True:
                version, _, stream_id, opcode, size = struct.unpack('>BBhBi', read(stream, 9))
                body = read(stream, size)
                reply = (ERROR, WRONG_VERSION) if version > 4 else answer(opcode, body)
                if reply is not None:
                    sock.sendall(struct.pack('>BBhBi', 0x84, 0, stream_id, reply[0], len(reply[1])) + reply[1])
        except (EOFError, OSError):
            pass


if __name__ == '__main__':
    server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
    tls = None
    if len(sys.argv) > 2:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*sys.argv[2:])
    print('listening', flush=True)
    while True:
        sock, _ = server.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(sock, tls), daemon=True).start()
