"""examples/interpreters.py: reactors in several interpreters share a port, and end when the main one says so."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / 'examples' / 'interpreters.py'
HERE = '127.0.0.1'


def test_before_314_it_says_what_to_use_instead():
    if sys.version_info >= (3, 14):
        pytest.skip('this Python has interpreters')
    done = subprocess.run([sys.executable, PROGRAM], cwd=PROGRAM.parents[1], capture_output=True, text=True,
                          timeout=30, env={'PYTHONPATH': str(PROGRAM.parents[1])})  # fmt: skip
    assert done.returncode == 1 and re.fullmatch(r'interpreters\.py: .*3\.14.* workers\.py .*\n', done.stderr)


@pytest.mark.skipif(sys.version_info < (3, 14), reason='NOT TESTED: several interpreters need Python 3.14')
@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_interpreters_share_the_clients_and_answer_before_they_end(signum):
    process = subprocess.Popen(
        [sys.executable, PROGRAM, '--port', '0', '--interpreters', '3'],
        cwd=PROGRAM.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={'PYTHONPATH': str(PROGRAM.parents[1])},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith(f'3 interpreters of process {process.pid} listen on '), process.stderr.read()
        port = int(line.rpartition(':')[2])
        clients = [socket.create_connection((HERE, port), timeout=20) for _ in range(60)]
        for number, client in enumerate(clients):
            client.sendall(b'%d' % number)
        for number, client in enumerate(clients):
            assert client.recv(9) == b'%d' % number
        # Each interpreter has a listener of its own, and the kernel chooses one at random.
        listening = Path(f'/proc/{process.pid}/net/tcp').read_text() if sys.platform == 'linux' else ''
        assert not listening or len(re.findall(rf'0100007F:{port:04X} 00000000:0000 0A', listening)) == 3
        process.send_signal(signum)
        for client in clients:
            assert client.recv(1) == b''  # a clean end
            client.close()
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and not errors
    finally:
        process.kill()
        process.communicate()
