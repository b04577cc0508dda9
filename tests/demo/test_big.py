"""The experiment with many processes: what it plans and refuses, its own network, how it holds and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reactor.demo import limits, plan
from reactor.demo.limits import loads_for, most_connections, most_of_a_server, servers_for, source_addresses
from tests.demo.test_demo import CHECKOUT, DEMO, children_of, demo

MILLION = 1_000_000
GB = 1_000_000_000
root = pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() != 0 or sys.platform != 'linux',
    reason='NOT TESTED: a network namespace: run the tests as root on Linux',
)


# -- how many of each


@pytest.mark.parametrize('per_process', [1, 32, 960, 19_936])
@pytest.mark.parametrize('share', [0.3, 1, 1.5, 3, 40, 53])
def test_no_server_gets_more_connections_than_descriptors_even_if_chance_is_against_it(per_process, share):
    connections = max(1, int(per_process * share))
    servers = servers_for(connections, per_process)
    if servers > 1:
        assert most_of_a_server(connections / servers) <= per_process
        assert most_of_a_server(connections / (servers - 1)) > per_process or servers == 2
    else:
        assert connections <= per_process
    assert loads_for(connections, per_process) * per_process >= connections


@pytest.mark.parametrize('per_process', [1, 32, 960, 19_936])
def test_the_largest_number_of_connections_needs_no_more_processes_than_are_allowed(per_process):
    most = most_connections(per_process, True)
    assert servers_for(most, per_process) <= limits.MOST_PROCESSES
    assert most_connections(per_process, False) == per_process


def test_no_pair_of_addresses_uses_more_than_half_of_its_ports():
    first, last = map(int, Path(limits.PORT_RANGE).read_text().split())
    used: set[str] = set()
    loads = loads_for(MILLION, 19_936)
    for number in range(1, loads + 1):
        share = -(-MILLION // loads)
        addresses = source_addresses(share, number)
        assert -(-share // len(addresses)) <= (last - first + 1) / 2
        assert not used & {*addresses}
        used |= {*addresses}


# -- the plan


@pytest.fixture
def machine(monkeypatch):
    """`machine(memory=, files=, tracked=)` makes the plan believe in a machine with these limits."""

    def make(memory=100 * GB, files=10 * MILLION, tracked=10 * MILLION):
        found = {
            '/proc/sys/fs/file-nr': [0, 0, files],
            '/proc/sys/fs/epoll/max_user_watches': [10 * MILLION],
            '/proc/sys/net/netfilter/nf_conntrack_max': [tracked],
            '/proc/sys/net/netfilter/nf_conntrack_count': [0],
        }
        monkeypatch.setattr(plan, 'numbers', found.__getitem__)
        monkeypatch.setattr(plan, 'available_memory', lambda: memory)

    return make


def refused(connections, own_network=True):
    wanted = plan.plan(connections, 6000, 20, 19_936)
    return plan.refusal(wanted, 19_936, True, own_network)


@pytest.mark.parametrize(
    ('limits_of_machine', 'own_network', 'reason'),
    [
        ({'memory': 8 * GB}, True, 'only 8.0 GB of memory are available'),
        ({'files': MILLION}, True, 'fs.file-max'),
        ({'tracked': 262_144}, False, 'nf_conntrack_max'),
    ],
)
def test_a_machine_that_is_too_small_is_refused_with_the_largest_number_that_fits(
    machine, limits_of_machine, own_network, reason
):
    machine(**limits_of_machine)
    said = refused(MILLION, own_network)
    assert said.startswith('1,000,000 connections do not fit, because ') and reason in said
    most = int(said.rsplit('at most ', 1)[1].removesuffix(' do').replace(',', ''))
    assert 0 < most < MILLION
    assert refused(most, own_network) is None
    assert refused(most + most // 10, own_network) is not None


def test_a_large_machine_is_not_refused_and_a_namespace_has_no_connection_tracking(machine):
    machine(tracked=1000)
    assert refused(MILLION) is None
    assert refused(1001, own_network=False) is not None


def test_the_plan_names_processes_memory_and_time():
    said = plan.plan(MILLION, 6000, 20, 19_936).describe()
    assert '1,000,000 connections take 10' in said and 'GB of the kernel' in said and ' min' in said


def test_a_big_experiment_has_to_be_confirmed():
    done = demo('--connections', '100001')
    assert done.returncode == 1 and not done.stdout
    assert '100,001 connections take ' in done.stderr and '--yes' in done.stderr


# -- runs


@root
def test_the_connections_are_in_a_network_of_their_own_that_is_gone_afterwards(tmp_path):
    before = os.stat('/proc/self/ns/net').st_ino
    process = subprocess.Popen(
        [*DEMO, '--connections', '500', '--rate', '2000', '--delay', '1', '--hold', '1', '--json', '--quiet'],
        cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    children = children_of(process, 2)
    networks = {os.stat(f'/proc/{child.pid}/ns/net').st_ino for child in children}
    assert len(networks) == 1 and before not in networks
    printed, errors = process.communicate(timeout=60)
    result = json.loads(printed)
    assert process.returncode == 0, errors
    assert result['own_network'] and result['answered'] == 500
    assert 0 <= result['idle_cpu'] < 0.5
    assert result['kernel_memory_bytes']['open'] > result['kernel_memory_bytes']['before'] * 0.5
    assert result['answers_after_release']['p50'] <= result['reply_time']['p50']
    assert psutil.wait_procs(children, timeout=0)[1] == []


@pytest.mark.slow
@root
@pytest.mark.timeout(300)
@pytest.mark.parametrize('connections', [20_000, 100_000])
def test_many_connections_are_open_at_once_in_their_own_network_and_answered(connections):
    needed = 30_000 * connections
    if plan.available_memory() < needed:
        pytest.skip(f'NOT TESTED: {connections:,} connections need {needed / GB:.1f} GB of memory')
    done = demo('--connections', str(connections), '--hold', '3', '--json', '--quiet', timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result['peak_open'] == result['answered'] == connections and result['errors'] == 0
    assert result['own_network'] and result['server']['bytes_per_connection'] < 700
    kernel = result['kernel_memory_bytes']
    assert 8_000 < (kernel['open'] - kernel['before']) / connections < 16_000


@pytest.mark.slow
@pytest.mark.parametrize('how', ['SIGINT', 'SIGTERM', 'a killed server', 'a killed load'])
@pytest.mark.parametrize('when', ['while processes start', 'while connections open', 'while all are held'])
def test_whatever_interrupts_it_the_experiment_ends_soon_with_its_reason_and_leaves_nothing(how, when):
    command = [*DEMO, '--connections', '30000', '--rate', '15000', '--delay', '1', '--hold', '60']
    process = subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children = children_of(process, 2 if when == 'while processes start' else 4)
    lines = []
    if when != 'while processes start':
        wanted = 'open 30,000' if when == 'while all are held' else '   open '
        for line in process.stderr:
            lines.append(line)
            if wanted in line:
                break
    began = time.monotonic()
    if how.startswith('SIG'):
        process.send_signal(getattr(signal, how))
    else:
        children[0 if how == 'a killed server' else -1].kill()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    reason = {'SIGINT': 'interrupted', 'SIGTERM': 'ended by SIGTERM'}.get(how, 'process (pid ')
    assert reason in errors and 'Traceback' not in errors
    assert process.returncode == (130 if how == 'SIGINT' else 1)
    assert psutil.wait_procs(children, timeout=5)[1] == []
