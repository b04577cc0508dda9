"""The connection class for Cassandra's driver: the driver's own tests, and a cluster with a node that is killed.

The driver's tests are not in its wheel. They are in Debian's source package, of which a test here uses one file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.certificates import certificates  # noqa: F401
from tests.recipes.running import RECIPES

NODE = Path(__file__).parent / 'cql_node.py'
CACHE = Path.home() / '.cache' / 'selectors-reactor'
FETCH = (
    f'cd {CACHE} && apt-get source --download-only python-cassandra-driver (it needs a deb-src line), '
    'or set CASSANDRA_DRIVER_SOURCE to the path of python-cassandra-driver_*.orig.tar.gz'
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('cassandra') is None,
    reason='NOT TESTED: the driver is not installed: pip install cassandra-driver',
)


def run_python(*words, folder='', timeout=60):
    environment = {**os.environ, 'PYTHONPATH': f'{folder}:{RECIPES}:{RECIPES.parents[1]}'}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# The driver's tests call handle_read and handle_write themselves, with a socket that is a mock. So nothing is watched.
DRIVER_TESTS = """
import types, unittest
from unittest.mock import Mock, patch
import socket
from cassandra_connection import ReactorConnection
from tests.unit.io.utils import ReactorTestMixin, TimerTestMixin


class Unwatched(ReactorConnection):
    start = flush = lambda self: None


class MockedSockets(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        ReactorConnection.initialize_reactor()
        cls.patcher = patch('socket.socket', spec=socket.socket)
        cls.patcher.start()

    @classmethod
    def tearDownClass(cls):
        cls.patcher.stop()


class ReactorTests(ReactorTestMixin, MockedSockets):
    connection_class = Unwatched
    socket_attr_name = '_socket'


class TimerTests(TimerTestMixin, MockedSockets):
    connection_class = Unwatched

    @property
    def create_timer(self):
        return self.connection.create_timer

    @property
    def _timers(self):
        return types.SimpleNamespace(_queue=ReactorConnection.loop.r.stats().timers, _new_timers=0)


unittest.main(verbosity=2)
"""


FILES = 'tests/__init__.py', 'tests/unit/__init__.py', 'tests/unit/io/__init__.py', 'tests/unit/io/utils.py'


def driver_source():
    if given := os.environ.get('CASSANDRA_DRIVER_SOURCE'):
        return Path(given)
    return max(CACHE.glob('python-cassandra-driver_*.orig.tar.gz'), default=None)


@pytest.mark.slow
def test_the_class_passes_the_tests_of_the_driver_for_its_own_classes(tmp_path, capsys):
    source = driver_source()
    if source is None or not source.exists():
        pytest.skip(f'NOT TESTED: the tests of the driver are not here: {FETCH}')
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            name = member.name.partition('/')[2]
            if name in (
                'tests/__init__.py',
                'tests/unit/__init__.py',
                'tests/unit/io/__init__.py',
                'tests/unit/io/utils.py',
            ):
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    (tmp_path / 'driver_tests.py').write_text(DRIVER_TESTS)
    printed = run_python(str(tmp_path / 'driver_tests.py'), folder=tmp_path).stderr
    ran = int(re.search(r'^Ran (\d+) tests', printed, re.MULTILINE)[1])
    assert ran >= 16 and re.search(r'^OK$', printed, re.MULTILINE), printed
    with capsys.disabled():
        print(f'\ncassandra: {ran} tests of {source.name} passed')


@contextmanager
def node(port, *certificate):
    process = subprocess.Popen(
        [sys.executable, str(NODE), str(port), *map(str, certificate)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == 'listening\n'
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
def port():
    return free_port()


CLUSTER = """if 1:
    import json, os, signal, subprocess, sys, threading, time
    from cassandra.cluster import Cluster, ExecutionProfile, EXEC_PROFILE_DEFAULT
    from cassandra.policies import ConstantReconnectionPolicy, RoundRobinPolicy
    from cassandra.query import dict_factory
    from cassandra_connection import ReactorConnection

    node, port = sys.argv[1], sys.argv[2]
    result = {}

    def start_node():
        process = subprocess.Popen([sys.executable, node, port], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == 'listening\\n'
        return process

    def kill(process):
        process.kill()
        process.wait()
        process.stdout.close()

    def make_cluster(connection_class=ReactorConnection, **others):
        # Named tuples, the default, would make a class for each answer, which takes longer than all the rest.
        options = {'request_timeout': 5, 'row_factory': dict_factory}
        profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), **options)
        return Cluster(
            ['127.0.0.1'], port=int(port), connection_class=connection_class, protocol_version=4,
            schema_metadata_enabled=False, token_metadata_enabled=False,
            reconnection_policy=ConstantReconnectionPolicy(0.2, None),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile}, **others
        )
    def descriptors():
        return len(os.listdir('/proc/self/fd'))
"""


def run_cluster(port, text, *words):
    printed = run_python('-c', CLUSTER + text + '\n    print(json.dumps(result))', str(NODE), str(port), *words)
    return json.loads(printed.stdout)


def test_queries_of_several_threads_are_answered_and_a_closed_cluster_leaves_nothing_open(port):
    with node(port):
        result = run_cluster(
            port,
            """
    ReactorConnection.initialize_reactor()
    before = descriptors()
    cluster = make_cluster()
    session = cluster.connect()
    answers = []

    def ask(first):
        answers.extend(session.execute(f'SELECT {n}').one()['n'] for n in range(first, first + 200))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, 2000, 200)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    result['right'] = sorted(answers) == list(range(2000))
    result['huge'] = len(session.execute('HUGE 5000000').one()['data'])
    began = time.monotonic()
    try:
        session.execute('SLEEP', timeout=0.5)
    except Exception as exc:
        result['slow'] = [type(exc).__name__, time.monotonic() - began]
    cluster.shutdown()
    time.sleep(0.3)
    result['left'] = descriptors() - before
    ReactorConnection.loop.stop()
    """,
        )
    assert result['right'] and result['huge'] == 5_000_000
    assert result['slow'][0] == 'OperationTimedOut' and 0.4 < result['slow'][1] < 1.5
    assert result['left'] == 0


def test_a_node_with_tls(port, certificates):  # noqa: F811
    with node(port, certificates.folder / 'server.pem', certificates.folder / 'server.key'):
        result = run_cluster(
            port,
            """
    import ssl
    context = ssl.create_default_context(cafile=sys.argv[3])
    context.check_hostname = False
    session = make_cluster(ssl_context=context).connect()
    result['huge'] = len(session.execute('HUGE 5000000').one()['data'])
    futures = [session.execute_async(f'SELECT {n}') for n in range(2000)]
    result['right'] = [future.result().one()['n'] for future in futures] == list(range(2000))
    session.cluster.shutdown()
    """,
            str(certificates.authority),
        )
    assert result == {'huge': 5_000_000, 'right': True}


def test_every_request_ends_when_the_node_is_killed_and_later_ones_are_answered(port, capsys):
    result = run_cluster(
        port,
        """
    process = start_node()
    cluster = make_cluster()
    session = cluster.connect()
    before = descriptors()
    answered, failed, wrong, done = 0, {}, 0, threading.Semaphore(0)

    def on_rows(rows, n):
        global answered, wrong
        answered, wrong = answered + 1, wrong + (rows[0]['n'] != n)
        done.release()

    def on_error(exc):
        failed[type(exc).__name__] = failed.get(type(exc).__name__, 0) + 1
        done.release()

    for n in range(10000):
        if n in (3000, 7000):
            kill(process)
            time.sleep(0.5)
            process = start_node()
            while True:
                try:
                    session.execute('SELECT 1')
                    break
                except Exception:
                    time.sleep(0.05)
        session.execute_async(f'SELECT {n}').add_callbacks(on_rows, on_error, callback_args=(n,))
    ended = sum(done.acquire(timeout=10) for _ in range(10000))
    until = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < until:
        time.sleep(0.05)
    result.update(ended=ended, answered=answered, failed=failed, wrong=wrong, left=descriptors() - before)
    cluster.shutdown()
    ReactorConnection.loop.stop()
    kill(process)
    """,
    )
    with capsys.disabled():
        print(f'\ncassandra, 10,000 requests over two kills: {result}')
    assert result['ended'] == 10000 == result['answered'] + sum(result['failed'].values())
    assert result['wrong'] == 0 and result['left'] <= 0  # the driver may still be without its connection for events
    assert result['answered'] > 5000


def test_the_callbacks_run_in_the_loop_of_the_program(port):
    with node(port):
        command = [str(RECIPES / 'cassandra_connection.py'), '--port', str(port), 'SELECT 17']
        assert run_python(*command).stdout == 'Row(n=17)\n'
        assert 'there is no such table' in run_python(*command[:-1], 'SELECT x FROM y').stdout
    assert 'Tried connecting to' in run_python(*command).stdout


def test_connecting_in_the_loop_is_refused_with_advice(port):
    with node(port):
        result = run_cluster(
            port,
            """
    import reactor
    r = reactor.Reactor()
    ReactorConnection.use(r)
    cluster = make_cluster()
    try:
        cluster.connect()
    except Exception as exc:
        result['error'] = str(exc)
    cluster.shutdown()
    """,
        )
    assert 'run_in_thread(cluster.connect)' in result['error']


def test_a_child_after_a_fork_connects_by_itself_and_the_parent_goes_on(port):
    with node(port):
        result = run_cluster(
            port,
            """
    cluster = make_cluster()
    session = cluster.connect()
    session.execute('SELECT 1')
    pid = os.fork()
    if not pid:
        again = make_cluster()
        code = again.connect().execute('SELECT 2').one()['n']
        os._exit(code)
    result['child'] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    result['parent'] = session.execute('SELECT 3').one()['n']
    cluster.shutdown()
    ReactorConnection.loop.stop()
    """,
        )
    assert result == {'child': 2, 'parent': 3}


@pytest.mark.slow
def test_how_fast_it_is_beside_the_class_for_asyncio(port, capsys):
    with node(port):
        for name in 'ReactorConnection', 'AsyncioConnection':
            result = run_cluster(
                port,
                """
    name = sys.argv[3]
    if name != 'ReactorConnection':
        module = __import__('cassandra.io.' + name.removesuffix('Connection').lower() + 'reactor', fromlist=[name])
        ReactorConnection = getattr(module, name)
    from cassandra.concurrent import execute_concurrent
    cluster = make_cluster(ReactorConnection)
    session = cluster.connect()
    began = time.monotonic(), time.process_time()
    execute_concurrent(session, [(f'SELECT {n}', None) for n in range(10000)], concurrency=100)
    result['requests a second'] = round(10000 / (time.monotonic() - began[0]))
    result['CPU us per request'] = round((time.process_time() - began[1]) * 100)
    took = []
    for n in range(2000):
        began = time.perf_counter()
        session.execute(f'SELECT {n}')
        took.append(time.perf_counter() - began)
    took.sort()
    result['one after another, p50 us'] = round(took[1000] * 1e6)
    loop = getattr(ReactorConnection, 'loop', None)
    if loop is not None:
        before = loop.r.stats().loop_count
        time.sleep(3)
        result['idle, turns a second'] = round((loop.r.stats().loop_count - before) / 3, 1)
    cluster.shutdown()
    """,
                name,
            )
            with capsys.disabled():
                print(f'\ncassandra, {name}: {result}')
            assert result['requests a second'] > 200
