"""The network goes down under open connections, without a word: a namespace whose loopback is taken down."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import reactor

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
LATEST = 20  # seconds until each end was told
UNSHARE = ['unshare', '--net', '--map-root-user']


def set_loopback(up):
    """Up or down, as `ip link set lo up` does it."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack('16sh22x', b'lo', 0))
        flags = struct.unpack_from('h', found, 16)[0]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack('16sh22x', b'lo', flags))


def inside():
    """What the namespace runs: pairs of connections with one way each to notice, and what each was told."""
    ends = {}
    set_loopback(True)
    with reactor.Reactor() as r:
        conns, echoed = {}, []

        def on_close(name):
            def on_close(conn, exc):
                ends[name] = getattr(exc, 'errno', None) or type(exc).__name__

            return on_close

        def on_data(conn, data):
            echoed.append(data)
            if len(echoed) == len(ways):
                r.call_soon(go_down)

        def go_down():
            set_loopback(False)
            conns['write_timeout'].write(b'never taken' * 1_000_000)

        ways = {
            'keepalive': {'keepalive': (1, 1, 2)},
            'idle_timeout': {'idle_timeout': 1},
            'read_timeout': {'read_timeout': 1},
            'write_timeout': {'write_timeout': 1},
        }
        server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
        server.unref()
        for name, options in ways.items():
            conns[name] = conn = r.connect_tcp(*server.address, on_data, on_close=on_close(name), **options)
            conn.write(b'x')
        until = r.now + LATEST
        while len(ends) < len(ways) and r.now < until:
            r.run_once(0.1)
    print(json.dumps(ends))


def test_a_network_that_goes_down_is_told_by_keepalive_and_by_every_time_limit():
    if not shutil.which('unshare') or subprocess.run([*UNSHARE, 'true'], capture_output=True).returncode:
        pytest.skip('NOT TESTED: a network that goes down needs `unshare --net --map-root-user`, which fails here')
    environment = {**os.environ, 'PYTHONPATH': str(Path(reactor.__file__).parents[1])}
    command = [*UNSHARE, sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        'keepalive': errno.ETIMEDOUT,
        'idle_timeout': 'IdleTimeout',
        'read_timeout': 'ReadTimeout',
        'write_timeout': 'WriteTimeout',
    }


if __name__ == '__main__':
    inside()
