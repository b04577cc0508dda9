"""Addresses: checked when passed in, sorted so that the families alternate, and shown in their usual notation."""

from __future__ import annotations

import os
import subprocess
import sys
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reactor.kernel import Kernel
from reactor.kernel.platforms import ABSTRACT_PATHS, AF_UNIX
from reactor.net.addresses import (
    check_family,
    check_host,
    check_path,
    check_port,
    interleave,
    is_abstract,
    numeric,
    show,
    unmapped,
)

needs_unix = pytest.mark.skipif(AF_UNIX < 0, reason='this platform has no Unix sockets')
needs_abstract = pytest.mark.skipif(not ABSTRACT_PATHS, reason='abstract Unix sockets are a Linux feature')


@pytest.mark.parametrize('port', [0, 1, 65535])
def test_a_port_is_0_to_65535(port):
    assert check_port(port) == port


@pytest.mark.parametrize('port', [-1, 65536, 1 << 40])
def test_a_port_out_of_range_is_a_value_error(port):
    with pytest.raises(ValueError, match=str(port)):
        check_port(port)


@pytest.mark.parametrize('port', ['80', 80.0, True, None])
def test_a_port_of_another_type_is_a_type_error(port):
    with pytest.raises(TypeError):
        check_port(port)


@pytest.mark.parametrize('host', [None, 'localhost', '127.0.0.1', '::1'])
def test_a_host_is_a_name_an_address_or_none(host):
    assert check_host(host) == host


@pytest.mark.parametrize('host', ['', 'a\0b'])
def test_an_invalid_host_is_a_value_error(host):
    with pytest.raises(ValueError):
        check_host(host)


@pytest.mark.parametrize('host', [b'localhost', 1, ('127.0.0.1', 80)])
def test_a_host_of_another_type_is_a_type_error(host):
    with pytest.raises(TypeError):
        check_host(host)


@pytest.mark.parametrize('family', [0, AF_INET, AF_INET6])
def test_a_family_is_any_or_ipv4_or_ipv6(family):
    assert check_family(family) == family


def test_another_family_is_a_value_error():
    with pytest.raises(ValueError):
        check_family(12345)


@needs_unix
@pytest.mark.parametrize('path', ['/tmp/s', 'relative', b'/tmp/s'])
def test_a_path_is_not_changed(path):
    assert check_path(path) == path
    assert not is_abstract(path)


@needs_unix
@pytest.mark.parametrize('path', ['', b'', '/tmp/a\0b'])
def test_an_invalid_path_is_a_value_error(path):
    with pytest.raises(ValueError):
        check_path(path)


@needs_unix
@pytest.mark.parametrize('path', [None, 5, ['/tmp/s']])
def test_a_path_of_another_type_is_a_type_error(path):
    with pytest.raises(TypeError):
        check_path(path)


@needs_unix
def test_a_path_is_measured_in_bytes():
    check_path('x' * (107 if sys.platform == 'linux' else 103))
    for path in ('x' * 108, 'ä' * 54):
        with pytest.raises(OSError, match='at most'):
            check_path(path)


def test_without_unix_sockets_a_path_is_refused_and_the_error_says_what_to_use(monkeypatch):
    monkeypatch.setattr('reactor.net.addresses.AF_UNIX', -1)
    with pytest.raises(OSError, match='use TCP'):
        check_path('/tmp/socket')


@needs_unix
def test_without_abstract_unix_sockets_an_abstract_path_is_refused(monkeypatch):
    monkeypatch.setattr('reactor.net.addresses.ABSTRACT_PATHS', False)
    with pytest.raises(OSError, match='no abstract'):
        check_path('@name')
    assert check_path('/tmp/socket') == '/tmp/socket'


@needs_abstract
@pytest.mark.parametrize('path', ['@name', b'@name', '\0name', b'\0name'])
def test_an_abstract_path_may_be_written_with_an_at_sign(path):
    assert check_path(path) == b'\0name'
    assert is_abstract(check_path(path))


@pytest.mark.scenario(84)
@pytest.mark.parametrize(
    ('address', 'text'),
    [
        (('127.0.0.1', 80), '127.0.0.1:80'),
        (('::1', 80, 0, 0), '[::1]:80'),
        ('/tmp/s', '/tmp/s'),
        ('', 'unnamed'),
        (b'\0name', '@name'),
        (b'/tmp/s', "b'/tmp/s'"),
        (None, 'unknown'),
        # The peer chooses the name of its Unix socket. Line breaks are escaped, so the peer cannot forge log lines.
        (b'\0a\nERROR: forged', r"'@a\nERROR: forged'"),
        ('/tmp/a\x1b[2J', r"'/tmp/a\x1b[2J'"),
        (b'\0\xff', r'@\xff'),
        ('/tmp/\udcff', r"'/tmp/\udcff'"),
    ],
)
def test_an_address_is_shown_in_its_usual_notation(address, text):
    assert show(address) == text


def test_a_mapped_ipv4_peer_is_shown_as_ipv4():
    assert unmapped(('::ffff:192.0.2.1', 80, 0, 0)) == ('192.0.2.1', 80)


@pytest.mark.parametrize(
    'address', [('::1', 80, 0, 0), ('::ffff:1:2', 80, 0, 0), ('192.0.2.1', 80), '/tmp/s', b'\0name', '', None]
)
def test_every_other_address_is_unchanged(address):
    assert unmapped(address) == address


def test_numbers_need_no_look_up():
    assert numeric(Kernel(), '127.0.0.1', 80) == [(AF_INET, ('127.0.0.1', 80))]
    assert numeric(Kernel(), '::1', 80)[0][0] == AF_INET6
    assert numeric(Kernel(), '127.0.0.1', 80, AF_INET6) == []


@pytest.mark.parametrize('name', ['localhost', 'no.such.name.invalid', 'x' * 300, '\udc80'])
def test_a_name_is_not_numeric(name):
    assert numeric(Kernel(), name, 80) == []


addresses = st.lists(st.tuples(st.sampled_from([AF_INET, AF_INET6]), st.integers(0, 5)))


@given(addresses)
@example([(AF_INET6, 1), (AF_INET6, 2), (AF_INET, 3)])
@example([(AF_INET6, 1), (AF_INET, 2), (AF_INET, 3)])
def test_families_alternate_starting_with_the_first(found):
    mixed = interleave(list(found))
    assert sorted(mixed) == sorted(found)
    for family in AF_INET, AF_INET6:  # the addresses of each family keep their order
        assert [a for a in mixed if a[0] == family] == [a for a in found if a[0] == family]
    pairs = 2 * min(sum(a[0] == AF_INET for a in found), sum(a[0] == AF_INET6 for a in found))
    assert all(mixed[i][0] != mixed[i + 1][0] for i in range(max(0, pairs - 1)))
    assert mixed[:1] == found[:1]


@needs_unix
@pytest.mark.skipif(os.name != 'posix', reason='file names are bytes on POSIX only')
def test_a_path_that_is_not_utf8_is_accepted():
    assert check_path(os.fsdecode(b'/tmp/\xff')) == os.fsdecode(b'/tmp/\xff')


def test_a_path_in_bytes_is_not_compared_to_text():
    """With `python -bb`, comparing bytes with text is an error."""
    program = 'from reactor.net.addresses import is_abstract as a; print(a(b"/s"), a("/s"), a(b"\\0s"), a("\\0s"))'
    done = subprocess.run([sys.executable, '-bb', '-c', program], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'False False True True\n', done.stderr
