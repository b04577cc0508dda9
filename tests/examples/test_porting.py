"""The porting guides: each original and its port behave the same for the same clients, and the guides quote both."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

import reactor
import reactor.observe
import reactor.serve
from reactor.framing import Frames
from tests.examples.test_examples import check_end, client, example, needs, read_to_end, read_until
from tests.helpers.certificates import certificates  # noqa: F401

EXAMPLES = Path(__file__).parents[2] / 'examples'
# The asyncio original is a text file, not a module, because nothing in this project imports asyncio.
PORTING = EXAMPLES / 'porting'
ORIGINALS = [*PORTING.glob('*_original.py'), *PORTING.glob('*_original.txt')]
PAGES = EXAMPLES.parent / 'docs' / 'porting'
GUIDES = sorted(PAGES.glob('*.md'))
BLOCKS = [
    pytest.param(guide, *found, id=f'{guide.stem}: {found[1].strip().splitlines()[0].strip()}')
    for guide in GUIDES
    for found in re.findall(r'^```(\w*)\n(.*?)^```$', guide.read_text(), re.MULTILINE | re.DOTALL)
]
# Tornado 4 cannot be installed next to the current Tornado, so it has its own folder.
TORNADO_4 = Path(os.environ.get('TORNADO_4', EXAMPLES.parent / '.venv-tornado4'))

unix_signals = pytest.mark.skipif(sys.platform == 'win32', reason='Windows cannot send SIGTERM to a child')
has_asyncore = pytest.mark.skipif(sys.version_info >= (3, 12), reason='Python 3.12 and later have no asyncore')
has_tornado_4 = pytest.mark.skipif(
    sys.version_info >= (3, 12) or not (TORNADO_4 / 'tornado').is_dir(),
    reason="not run: Tornado's callbacks need Python 3.11 and: pip install --target .venv-tornado4 tornado==4.5.3",
)


def both(before, mark, after):
    return pytest.mark.parametrize('name', [pytest.param(before, marks=mark), after])


@contextmanager
def program(name, *options):
    """Run a ported example or its original, with warnings off.

    The originals use deprecated modules, and asyncio warns about slow callbacks.
    """
    with example(f'porting/{name}', '--port', '0', *options, warnings='ignore', mode='utf8') as (process, port):
        yield process, port


def rest(sock):
    """Return everything that arrives until the connection ends, possibly with a reset."""
    received = b''
    try:
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


# -- asyncore


asyncore_store = both('asyncore_store_original.py', has_asyncore, 'port_from_asyncore_store.py')
asyncore_relay = both('asyncore_relay_original.py', has_asyncore, 'port_from_asyncore_relay.py')


@asyncore_store
def test_the_stores_store_and_return_the_same_bytes(name):
    value = bytes(range(256)) * 4000
    with program(name) as (_, port), client(port) as sock, client(port) as other:
        sock.sendall(b'put a 5\r\nhel')
        sock.sendall(b'loput b 2\r\n\r\nget a\r\n')
        assert read_until(sock, b'hello') == b'stored\r\nstored\r\n5\r\nhello'
        other.sendall(b'get b\r\nget nothing\r\nput c 0\r\nput %s\r\nput large %d\r\n' % (b'x', len(value)))
        other.sendall(value)
        assert read_until(other, b'stored\r\n') == b'2\r\n\r\n0\r\nwhat?\r\nwhat?\r\nstored\r\n'
        sock.sendall(b'get large\r\nquit\r\nget a\r\n')
        assert read_to_end(sock) == b'%d\r\n' % len(value) + value
        other.sendall(b'x' * 5000)
        assert rest(other) == b''


@asyncore_relay
@unix_signals
def test_the_relays_pass_the_same_bytes_and_end_with_their_last_client(name):
    with (
        example('echo.py', '--port', '0') as (_, echo_port),
        program(name, '--to', f'127.0.0.1:{echo_port}') as running,
    ):
        process, port = running
        with client(port) as sock:
            for data in b'hello', bytes(range(256)) * 400:
                sock.sendall(data)
                assert read_until(sock, data) == data
            process.send_signal(signal.SIGTERM)
            refused = 0
            while not refused:
                with socket.socket() as another:
                    refused = another.connect_ex(('127.0.0.1', port))
            sock.sendall(b'still here')
            assert read_until(sock, b'here') == b'still here'
        assert process.wait(10) == 0
        assert process.stdout.read() == 'ended\n'


@asyncore_relay
@unix_signals
def test_the_relays_disconnect_a_client_without_a_server_and_a_silent_one(name):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        listener = socket.create_server(('127.0.0.1', 0))
        with listener:
            gone = listener.getsockname()[1]
        for port_behind, idle in (gone, '60'), (silent.getsockname()[1], '0.2'):
            with program(name, '--to', f'127.0.0.1:{port_behind}', '--idle', idle) as (process, port):
                with client(port) as sock:
                    assert rest(sock) == b''
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0


# -- Tornado


@both('tornado_original.py', has_tornado_4, 'port_from_tornado.py')
def test_the_port_from_tornado_answers_like_the_original(name, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', f'{TORNADO_4}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    with program(name) as (process, port), client(port) as sock:
        sock.sendall(b'echo one\r\nec')
        sock.sendall(b'ho two\r\nlast\r\nwhat is this\r\nin 0.05 later\r\n')
        assert read_until(sock, b'later\r\n') == b'one\r\ntwo\r\nnothing\r\nwhat?\r\nlater\r\n'
        with socket.socket(type=socket.SOCK_DGRAM) as news:
            news.sendto(b'news', ('127.0.0.1', port))
        seen = b''
        while not seen.endswith(b'news\r\n'):
            sock.sendall(b'last\r\n')
            seen = read_until(sock, b'\r\n')
        sock.sendall(b'body 100000\r\n' + b'\r\n' * 50000 + b'echo three\r\nticks 3\r\n')
        assert read_until(sock, b'tick\r\n' * 3) == b'100000 bytes\r\nthree\r\n' + b'tick\r\n' * 3
        sock.sendall(b'quit\r\necho never\r\n')
        assert read_to_end(sock) == b'bye\r\n'
        assert process.stdout.readline() == 'closed: None\n'
        with client(port) as other:
            other.sendall(b'x' * 5000)
            assert rest(other) == b''


# -- asyncio


asyncio_pair = both('asyncio_original.txt', (), 'port_from_asyncio.py')
DIGEST = hashlib.pbkdf2_hmac('sha256', b'abc', b'salt', 1000).hex().encode()


def converse(sock):
    sock.sendall(b'say one\r\nsa')
    sock.sendall(b'y two\r\nwhat is this\r\nlater 0.05 later\r\n')
    greeted = b'ready, 127.0.0.1\r\none\r\ntwo\r\nwhat?\r\nlater\r\n'
    assert read_until(sock, b'later\r\n') == greeted
    sock.sendall(b'digest abc\r\n')
    assert read_until(sock, b'\r\n') == DIGEST + b'\r\n'
    sock.sendall(b'flood 200\r\n')
    left = 200 * 65536
    while left:
        piece = sock.recv(1 << 20)
        assert piece.strip(b'x') == b''
        left -= len(piece)
    sock.sendall(b'quit\r\nsay never\r\n')
    assert read_to_end(sock) == b'bye\r\n'


@asyncio_pair
def test_the_port_from_asyncio_answers_like_the_original(name):
    with program(name, '--idle', '20') as (process, port):
        with client(port) as sock:
            converse(sock)
        assert process.stdout.readline() == 'closed: None\n'
        with client(port) as sock:
            sock.sendall(b'say last')
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b'ready, 127.0.0.1\r\nyou have ended\r\n'
        with client(port) as sock:
            sock.sendall(b'x' * 5000)
            assert rest(sock) in (b'', b'ready, 127.0.0.1\r\n')


@needs('openssl')
@asyncio_pair
def test_the_port_from_asyncio_answers_like_the_original_over_tls(name, certificates):  # noqa: F811
    files = ['--cert', str(certificates.folder / 'server.pem'), '--key', str(certificates.folder / 'server.key')]
    with program(name, *files) as (_, port), client(port) as plain:
        with certificates.client().wrap_socket(plain, server_hostname='localhost') as sock:
            converse(sock)


@asyncio_pair
def test_the_port_from_asyncio_disconnects_a_silent_client_like_the_original(name):
    with program(name, '--idle', '0.2') as (_, port), client(port) as sock:
        assert rest(sock) in (b'', b'ready, 127.0.0.1\r\n')


# -- all originals and ports


ENDING = [
    *[pytest.param(path.name, id=path.name) for path in sorted(PORTING.glob('port_from_*.py'))],
    *[pytest.param(path.name, marks=has_asyncore, id=path.name) for path in sorted(PORTING.glob('asyncore_*.py'))],
    pytest.param('tornado_original.py', marks=has_tornado_4, id='tornado_original.py'),
    pytest.param('asyncio_original.txt', id='asyncio_original.txt'),
]


@unix_signals
@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
@pytest.mark.parametrize('name', ENDING)
def test_a_program_says_where_it_listens_and_ends_cleanly(name, signum, monkeypatch):
    if name == 'tornado_original.py':
        monkeypatch.setenv('PYTHONPATH', f'{TORNADO_4}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    with socket.create_server(('127.0.0.1', 0)) as behind:
        options = ['--to', f'127.0.0.1:{behind.getsockname()[1]}'] if 'relay' in name else []
        check_end(f'porting/{name}', signum, '--port', '0', *options, warnings='ignore', mode='utf8')


# -- the guides


def test_the_originals_are_never_imported():
    """Tests run the originals only for comparison, in separate processes."""
    originals = {path.stem for path in ORIGINALS}
    assert {'asyncio_original', 'tornado_original', 'asyncore_original'} <= originals
    imported = re.compile(rf'^\s*(?:from|import)\s.*\b({"|".join(originals)})\b', re.MULTILINE)
    for folder in ('reactor', 'tests', 'examples', 'perf'):
        for path in (EXAMPLES.parent / folder).rglob('*.py'):
            assert not imported.search(path.read_text()), path


@pytest.mark.parametrize('guide, language, code', BLOCKS)
def test_a_code_block_of_a_guide_is_a_piece_of_the_program_named_before_it(guide, language, code):
    before = guide.read_text().partition(f'```{language}\n{code}```')[0]
    assert language == 'python'
    path = guide.parent / re.findall(r'\]\((\S+?\.(?:py|txt))\)', before)[-1]
    text = path.read_text()
    pieces = [textwrap.indent(code, ' ' * depth) for depth in range(0, 20, 4)]
    assert any('\n' + piece in text for piece in pieces), f'{path.name} has no such piece:\n{code}'


@pytest.mark.parametrize('guide', GUIDES, ids=lambda guide: guide.name)
def test_every_reactor_name_in_a_guide_exists(guide):
    text = guide.read_text()
    with reactor.Reactor() as r:
        conn = r.connect_unix('@nobody') if sys.platform == 'linux' else r.connect_tcp('127.0.0.1', 1)
        owners = {
            'r': r, 'conn': conn, 'timer': reactor.Timer, 'listener': reactor.Listener, 'reactor': reactor,
            'framing': reactor.framing, 'frames': Frames, 'process': reactor.Process, 'sock': reactor.DatagramSocket,
        }  # fmt: skip
        named = re.findall(r'`(\w+)\.(\w+)', text)
        missing = [f'{owner}.{name}' for owner, name in named if owner in owners and not hasattr(owners[owner], name)]
    assert not missing


@pytest.mark.parametrize('guide', GUIDES, ids=lambda guide: guide.name)
def test_every_link_in_a_guide_leads_to_a_file_and_every_table_is_well_formed(guide):
    text = guide.read_text()
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert (guide.parent / target).exists(), target
    for table in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
        rows = [row.replace('\\|', '') for row in table.splitlines()]
        assert {row.count('|') for row in rows} == {rows[0].count('|')}, rows[0]


def test_the_guides_list_every_original_and_every_port():
    assert {guide.name for guide in GUIDES} == {'index.md', 'from_asyncore.md', 'from_tornado.md', 'from_asyncio.md'}
    index = (PAGES / 'index.md').read_text()
    for path in [*GUIDES, *ORIGINALS, *PORTING.glob('port_from_*.py')]:
        assert path.name == 'index.md' or path.name in index, path.name


def test_a_wrong_guide_is_detected(tmp_path):
    """The checks of code blocks and names must be able to fail."""
    guide = tmp_path / 'guide.md'
    (tmp_path / 'echo.py').write_text('import reactor\n')
    guide.write_text('[echo](echo.py)\n```python\nimport nothing\n```\n`conn.wrong` | `r.right`\n')
    with pytest.raises(AssertionError):
        test_a_code_block_of_a_guide_is_a_piece_of_the_program_named_before_it(guide, 'python', 'import nothing\n')
    with pytest.raises(AssertionError):
        test_every_reactor_name_in_a_guide_exists(guide)
