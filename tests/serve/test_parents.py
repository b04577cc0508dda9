"""Several starts of one program on one address: exactly one serves, and the others say why they do not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from reactor.serve.addresses import ListenAddress
from tests.serve.test_serve import HERE, Served, wait_until

PROJECT = Path(__file__).parents[2]
# A parent that waits until the file `go` exists, and prints a line when it serves.
STARTER = """
import os, sys, time
from reactor import framing, serve
go, *listen = sys.argv[1:]

def on_line(conn, line):
    conn.write(b'%d\\n' % os.getppid())

def main(r, listeners):
    for sock in listeners:
        r.listen_tcp(None, 0, framing.lines(on_line), sock=sock)

print('here', flush=True)
while not os.path.exists(go):
    pass
sys.exit(serve.run(main, workers=3, listen=listen, drain_timeout=2, lame_duck=0))
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        return sock.getsockname()[1]


def start_together(folder: Path, *listens: str) -> list[subprocess.Popen[str]]:
    """Start a parent for each address. They have imported everything when they are released at the same moment."""
    script, go = folder / 'starter.py', folder / f'go{time.monotonic_ns()}'
    script.write_text(STARTER)
    parents = [
        subprocess.Popen(
            [sys.executable, str(script), str(go), listen],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT, process_group=0,
        )
        for listen in listens
    ]  # fmt: skip
    for parent in parents:
        assert parent.stdout.readline() == 'here\n'
    go.touch()
    return parents


def stop(parents: list[subprocess.Popen[str]]) -> None:
    for parent in parents:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def who_answers(port: int, host: str = HERE) -> int:
    """Return the process id of the parent whose worker answers."""
    with socket.create_connection((host, port), 20) as sock:
        sock.sendall(b'x\n')
        return int(sock.makefile().readline())


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process listens."""
    conns = psutil.Process(pid).net_connections()
    return {f'{conn.laddr.ip}:{conn.laddr.port}' for conn in conns if conn.status == psutil.CONN_LISTEN}


def check_pairs(folder: Path, count: int, *hosts: str) -> None:
    """Check `count` times that of a parent for each host exactly one serves."""
    for _ in range(count):
        port = free_port()
        parents = start_together(folder, *(f'{host}:{port}' for host in hosts))
        try:
            all_but_one = lambda: sum(parent.poll() is not None for parent in parents) >= len(parents) - 1  # noqa: B023, E731
            wait_until(all_but_one)
            ended = [parent for parent in parents if parent.poll() is not None]
            errors = [parent.communicate()[1] for parent in ended]
            assert len(ended) == len(parents) - 1, errors
            for parent, text in zip(ended, errors, strict=True):
                assert parent.returncode == 1
                assert f':{port}: Address already in use' in text and 'ss -ltnp' in text
            (serving,) = set(parents) - set(ended)
            assert {who_answers(port) for _ in range(20)} == {serving.pid}
            assert serving.poll() is None
        finally:
            stop(parents)


def test_of_two_parents_started_at_the_same_moment_exactly_one_serves(tmp_path):
    check_pairs(tmp_path, 5, HERE, HERE)


def test_of_many_parents_started_at_the_same_moment_exactly_one_serves(tmp_path):
    check_pairs(tmp_path, 2, *[HERE] * 6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_each_of_20_pairs_exactly_one_parent_serves(tmp_path):
    check_pairs(tmp_path, 20, HERE, HERE)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason='this machine has no IPv6')
def test_a_parent_on_all_addresses_and_one_on_a_single_address_cannot_share_the_port(tmp_path):
    check_pairs(tmp_path, 2, '', HERE)


def test_parents_on_different_addresses_of_one_port_both_serve(tmp_path):
    port = free_port()
    parents = start_together(tmp_path, f'127.0.0.1:{port}', f'127.0.0.2:{port}')
    try:
        for parent, host in zip(parents, ('127.0.0.1', '127.0.0.2'), strict=True):
            wait_until(lambda: f'{host}:{port}' in listening(parent.pid))  # noqa: B023
            assert who_answers(port, host) == parent.pid
    finally:
        stop(parents)


def test_a_program_starts_again_right_after_its_parent_was_killed(tmp_path):
    port = free_port()
    with Served(tmp_path, run={'workers': 2, 'listen': [f'{HERE}:{port}']}) as served:
        served.pids(2)
        assert served.connect().pid()  # leaves a connection that the server closes first
        served.parent.kill()
        begun = time.monotonic()
        time.sleep(0.5)  # the workers of the first parent need that long to find out that their clients are idle

        def again():
            try:
                return Served(tmp_path, run={'workers': 2, 'listen': [f'{HERE}:{port}']})
            except AssertionError as exc:
                assert 'Address already in use' in str(exc)

        with wait_until(again):
            assert time.monotonic() - begun < 3  # 1.5 s on a machine that is not busy


def test_an_address_is_taken_from_the_moment_it_is_made():
    first = ListenAddress((HERE, 0), 10)
    sock = first.socket_for_worker()
    name = sock.getsockname()
    with pytest.raises(OSError, match='perhaps a worker that an earlier start of this program left behind'):
        ListenAddress(name, 10)
    first.close(sock)
    second = ListenAddress(name, 10)
    second.remove()
    third = ListenAddress(name, 10)  # the socket of `second` was closed, although no worker got it
    last = third.socket_for_worker()
    assert last.getsockname() == name
    third.close(last)
