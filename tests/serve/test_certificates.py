"""Certificates of a service: chosen by server name, renewed under load, and replaced completely or not at all."""

from __future__ import annotations

import collections
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

import reactor
from reactor import ReactorError, TLSError
from reactor.net.tls import TLSStream
from reactor.serve.certificates import Certificates, validity
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import Log, end, run_until, turns

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
NAMES = 'example.org', 'a.example.net', '*.example.com'


def needs(command):
    return pytest.mark.skipif(
        shutil.which(command) is None, reason=f'NOT TESTED: the command {command} is not installed'
    )


@pytest.fixture
def loop():
    with reactor.Reactor() as r:
        yield r


@pytest.fixture(scope='module')
def issued(certificates):  # noqa: F811
    """Certificate files with the subjects 'one', 'two' and 'three'; each certificate is valid for all of `NAMES`."""
    return {name: certificates.issue(name, *NAMES) for name in ('one', 'two', 'three')}


@pytest.fixture
def renewable(issued, tmp_path):
    """Files that a test may change: `renew('one')` writes this certificate to the paths in `renew.files`."""
    files = tmp_path / 'live.pem', tmp_path / 'live.key'

    def renew(name, key=None):
        shutil.copy(issued[name][0], files[0])
        shutil.copy(issued[key or name][1], files[1])

    renew.files = files
    renew('one')
    return renew


class Client:
    """The client's side of a handshake in memory; it accepts any certificate."""

    def __init__(self, version=None, alpn=None, chain=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        if version:
            self.context.minimum_version = self.context.maximum_version = version
        if alpn:
            self.context.set_alpn_protocols(alpn)
        if chain:
            self.context.load_cert_chain(*chain)

    def shake(self, context, name=None, session=None, said=None):
        """Do a handshake and return (client, server); `said` replaces the `name` in the ClientHello."""
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.context.wrap_bio(inward, outward, False, name, session)
        bios = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(*bios, True)
        waiting = {client: client.do_handshake, server: server.do_handshake}
        while waiting:
            for side, go_on in list(waiting.items()):
                try:
                    go_on()
                    del waiting[side]
                except ssl.SSLWantReadError:
                    pass
                hello = outward.read()
                bios[0].write(hello.replace(name.encode(), said) if said else hello)
                said = None
                inward.write(bios[1].read())
        server.write(b'x')  # when the client reads this, it also reads the session tickets
        inward.write(bios[1].read())
        client.read(1)
        return client, server


def subject(ssl_object, files):
    """Return which of `files` the peer of this side presented."""
    shown = ssl.DER_cert_to_PEM_cert(ssl_object.getpeercert(True))
    return next(name for name, (path, _) in files.items() if path.read_text() == shown)


# -- choosing by server name


@pytest.mark.parametrize(
    ('asked', 'shown'),
    [
        ('example.org', 'one'),
        ('EXAMPLE.Org', 'one'),
        ('example.org.', 'one'),
        ('xn--bcher-kva.example', 'one'),
        ('www.example.net', 'two'),
        ('exact.example.net', 'one'),
        ('WWW.example.net.', 'two'),
        ('example.net', 'three'),
        ('a.b.example.net', 'three'),
        ('sub.example.org', 'three'),
        ('localhost', 'three'),
        (None, 'three'),
    ],
)
def test_the_exact_name_comes_before_a_wildcard_and_a_wildcard_before_the_default(issued, asked, shown):
    one, two, three = issued['one'], issued['two'], issued['three']
    exact = {'Example.ORG.': one, 'xn--bcher-kva.example': one, 'exact.example.net': one}
    served = Certificates({**exact, '*.Example.net': two, None: three})
    client, _ = Client().shake(served.context, asked)
    assert subject(client, issued) == shown


@pytest.mark.scenario(86)
@pytest.mark.parametrize('asked', ['other.org', 'a.b.example.com', 'com', None])
def test_without_a_default_other_names_are_refused_with_an_alert(loop, issued, certificates, caplog, asked):  # noqa: F811
    served = Certificates({'example.org': issued['one'], '*.example.com': issued['two']})
    server_log, client_log = Log(), Log()
    server = loop.listen_tcp('127.0.0.1', 0, ssl=served.context, on_close=server_log.on_close)
    context = certificates.client(check_hostname=False)
    loop.connect_tcp(
        *server.address, ssl=context, server_hostname=asked or '127.0.0.1', on_close=client_log.on_close
    )  # an IP address is not a server name and is not sent
    run_until(loop, lambda: server_log and client_log)
    assert isinstance(server_log[0][1], TLSError) and 'refused the name' in str(server_log[0][1])
    assert isinstance(client_log[0][1], TLSError) and 'UNRECOGNIZED_NAME' in str(client_log[0][1])
    assert not caplog.records


@pytest.mark.scenario(84)
@pytest.mark.parametrize('said', [b'\xff\xfe\x80', b'\xc3\xbcc', b'a.\n'], ids=['not text', 'not ASCII', 'line break'])
def test_an_invalid_server_name_prints_nothing(issued, capfd, said):
    served = Certificates({'abc': issued['one']})
    with pytest.raises(ssl.SSLError):
        Client().shake(served.context, 'abc', said=said)
    assert capfd.readouterr() == ('', '')  # pytest would also fail if sys.unraisablehook were called
    assert sys.unraisablehook.__class__.__name__ != '_Filter'


def test_other_unraisable_errors_are_still_reported(issued, monkeypatch):
    served, reported = Certificates({None: issued['one']}), []
    monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: reported.append(unraisable.exc_type))
    monkeypatch.setattr(served, '_contexts', None)
    with pytest.raises(ssl.SSLError):
        Client().shake(served.context)
    assert reported == [AttributeError]


def test_a_handshake_during_another_restores_the_hook(issued):
    """The second handshake begins and ends inside the first, as can happen with another thread."""
    served = Certificates({None: issued['one'], 'nested': issued['two']})
    choose, hooks, before = served._choose, [], sys.unraisablehook

    def nested(*args):
        served.context.sni_callback = choose
        hooks.append(sys.unraisablehook)
        Client().shake(served.context, 'nested')
        hooks.append(sys.unraisablehook)
        return choose(*args)

    served.context.sni_callback = nested
    Client().shake(served.context)
    assert hooks[0] is hooks[1] is not before and sys.unraisablehook is before


@pytest.mark.parametrize('name', ['', '*', '*.', '.', 'a..b', 'bücher.example', 'f*.example.org', 'a.*', 'a b', 'a/b'])
def test_a_name_that_no_client_can_request_is_refused_at_the_call(issued, name):
    with pytest.raises(ValueError, match='not a host name'):
        Certificates({name: issued['one']})


def test_bad_arguments_are_refused_at_the_call(issued):
    one = issued['one']
    with pytest.raises(ValueError, match='each name needs one'):
        Certificates({})
    with pytest.raises(ValueError, match='each name needs one'):
        Certificates({'a.org': one, 'A.org.': one})
    for name, pair in ((1, one), (b'a.org', one), (None, 'cert.pem'), (None, (*one, '')), (None, (1, None))):
        with pytest.raises(TypeError):
            Certificates({name: pair})
    for files in None, 3, [(None, one)]:
        with pytest.raises(TypeError, match='files must be a mapping'):
            Certificates(files)
    with pytest.raises(TypeError, match='callable'):
        Certificates({None: one}, configure=[])


# -- configuration of a context


def test_each_context_is_configured_in_the_same_way(issued):
    served = Certificates(
        {None: issued['one'], 'example.org': issued['two']}, lambda context: context.set_alpn_protocols(['h2', 'echo'])
    )
    for name in None, 'example.org':
        client, server = Client(alpn=['echo']).shake(served.context, name)
        assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == 'echo'


@pytest.mark.scenario(151)
@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('name', [None, 'example.org'])
def test_a_session_is_resumed_across_reloads(renewable, issued, version, name):
    served = Certificates({None: renewable.files, 'example.org': renewable.files})
    client = Client(version)
    first, _ = client.shake(served.context, name)
    renewable('two')
    served.reload()
    second, _ = client.shake(served.context, name, first.session)
    assert second.session_reused
    fresh, _ = Client(version).shake(served.context, name)
    assert not fresh.session_reused and subject(fresh, issued) == 'two'


def test_client_authorities_are_read_again_at_a_reload(issued, certificates, tmp_path):  # noqa: F811
    authority = tmp_path / 'authority.pem'
    shutil.copy(issued['one'][0], authority)  # this authority has not signed a client's certificate

    def ask(context):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority)

    served = Certificates({None: issued['one']}, ask)
    client = Client(chain=(certificates.folder / 'client.pem', certificates.folder / 'client.key'))
    with pytest.raises(ssl.SSLError):
        client.shake(served.context)
    shutil.copy(certificates.authority, authority)
    served.reload()
    _, server = client.shake(served.context)
    assert server.getpeercert()['subject'][-1] == (('commonName', 'client'),)


# -- reload


def echo(conn, data):
    conn.write(data)


@pytest.mark.scenario(151)
def test_new_handshakes_get_the_new_certificate_and_open_connections_stay_open(loop, renewable, certificates):  # noqa: F811
    served, log = Certificates({None: renewable.files}), Log()
    server = loop.listen_tcp('127.0.0.1', 0, echo, ssl=served.context)

    def connect():
        conn = loop.connect_tcp(*server.address, log.on_data, ssl=certificates.client(), on_close=log.on_close)
        run_until(loop, lambda: conn.state == 'OPEN')
        return conn

    old = connect()
    renewable('two')
    served.reload()
    new = connect()
    names = [dict(part[0] for part in conn.tls.peer_certificate['subject'])['commonName'] for conn in (old, new)]
    assert names == ['one', 'two']
    old.write(b'still here')
    run_until(loop, lambda: log)
    assert log == [('data', b'still here')]
    end(loop, old, new)


FAULTS = {
    'another key': (
        lambda renew: renew('two', key='three'),
        'the key in {1} does not belong to the certificate in {0}',
    ),
    'no certificate': (lambda renew: renew.files[0].unlink(), 'No such file or directory.*{0}'),
    'no key': (lambda renew: renew.files[1].unlink(), 'No such file or directory.*{1}'),
    'half a certificate': (
        lambda renew: renew.files[0].write_bytes(renew.files[0].read_bytes()[:300]),
        'no certificate and key in {0}',
    ),
    'an empty key': (lambda renew: renew.files[1].write_bytes(b''), '{1}'),
    'not text': (lambda renew: renew.files[0].write_bytes(bytes(range(256))), 'no certificate and key in {0}'),
    'a directory': (lambda renew: (renew.files[1].unlink(), renew.files[1].mkdir()), 'Is a directory.*{1}'),
}


@pytest.mark.scenario(152)
@pytest.mark.parametrize('fault', FAULTS)
def test_when_a_file_is_unusable_nothing_changes(renewable, issued, fault):
    break_it, said = FAULTS[fault]
    files = {'example.org': issued['three'], None: renewable.files}
    served = Certificates(files)
    before = served.expires
    break_it(renewable)
    with pytest.raises(ReactorError, match=said.format(*renewable.files)) as caught:
        served.reload()
    assert 'nothing was changed' in str(caught.value) and caught.value.__cause__ is not None
    assert [subject(Client().shake(served.context, name)[0], issued) for name in files] == ['three', 'one']
    assert served.expires == before
    with pytest.raises(ReactorError):
        Certificates(files)
    for path in renewable.files:
        if path.is_dir():
            path.rmdir()
    renewable('two')
    served.reload()
    assert subject(Client().shake(served.context)[0], issued) == 'two'


@needs('openssl')
def test_the_error_for_another_pem_format_says_how_to_convert_it(issued, tmp_path):
    trusted = tmp_path / 'trusted.pem'
    command = ['openssl', 'x509', '-trustout', '-in', issued['one'][0], '-out', trusted]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(
        ReactorError, match=rf'^{trusted} has no "-----BEGIN CERTIFICATE-----"; convert it with openssl x509 -in'
    ):
        Certificates({None: (trusted, issued['one'][1])})


@pytest.mark.parametrize('inside', ['', 'MAA=', 'MAIwAA==', 'MAQwAjAA', '!!!', 'MII='])
def test_a_file_with_a_misleading_first_certificate_is_refused(issued, tmp_path, inside):
    """OpenSSL ignores a BEGIN that is not at the start of a line, and would load the next certificate."""
    certificate, key = issued['one']
    strange = tmp_path / 'strange.pem'
    comment = f'# was -----BEGIN CERTIFICATE-----\n{inside}\n-----END CERTIFICATE-----\n'
    strange.write_text(comment + certificate.read_text())
    with pytest.raises(ReactorError, match=rf'{strange}|{key}'):
        Certificates({None: (strange, key)})


@pytest.mark.scenario(152)
@needs('openssl')
def test_an_encrypted_key_raises_and_no_password_is_asked_for(issued, tmp_path):
    locked = tmp_path / 'locked.key'
    command = ['openssl', 'pkey', '-in', issued['one'][1], '-aes128', '-passout', 'pass:secret', '-out', locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ReactorError, match=rf'encrypted.*{locked}'):
        Certificates({None: (issued['one'][0], locked)})


def test_certificate_and_key_may_be_one_file(issued, tmp_path):
    both = tmp_path / 'both.pem'
    both.write_bytes(issued['one'][1].read_bytes() + issued['one'][0].read_bytes())
    served = Certificates({None: (str(both), None)})
    assert subject(Client().shake(served.context)[0], issued) == 'one'


def test_contexts_from_before_a_reload_are_freed(renewable):
    served = Certificates({None: renewable.files})
    _, server = Client().shake(served.context)
    old = weakref.ref(server.context)
    del _
    served.reload()
    assert old() is not None  # the open connection keeps the old context alive
    del server
    assert old() is None


@pytest.mark.scenario(151)
def test_no_handshake_of_a_stream_fails_during_reloads(loop, renewable, certificates):  # noqa: F811
    served, shown, ends = Certificates({None: renewable.files}), collections.Counter(), []
    server = loop.listen_tcp('127.0.0.1', 0, echo, ssl=served.context)
    wanted, trust, reloads = 200, certificates.client(), []

    def connected(conn):
        shown[dict(part[0] for part in conn.tls.peer_certificate['subject'])['commonName']] += 1
        conn.write(b'are you there?')

    def closed(conn, exc):
        ends.append(exc)
        if len(ends) + 8 <= wanted:
            connect()
        if len(ends) % 10 == 0:
            renewable(('one', 'two')[len(reloads) % 2])
            served.reload()
            reloads.append(len(ends))

    def connect():
        loop.connect_tcp(
            *server.address, lambda conn, _: conn.close(), ssl=trust, on_connect=connected, on_close=closed
        )

    kept_log = Log()
    kept = [
        loop.connect_tcp(*server.address, kept_log.on_data, ssl=trust, on_close=kept_log.on_close) for _ in range(5)
    ]
    for _ in range(8):
        connect()
    run_until(loop, lambda: len(ends) == wanted, timeout=30)
    assert set(ends) == {None} and shown.total() == wanted and len(reloads) == 20
    assert shown['one'] > 50 and shown['two'] > 50
    for conn in kept:
        conn.write(b'x')
    run_until(loop, lambda: len(kept_log) == 5)
    assert set(kept_log) == {('data', b'x')}
    end(loop, *kept)


@pytest.mark.scenario(95)
def test_handshakes_that_choose_by_name_are_also_limited_per_turn(r, issued, certificates, monkeypatch):  # noqa: F811
    served, steps, done = Certificates(dict.fromkeys(('example.org', 'localhost'), issued['one'])), [], []
    shake = TLSStream._shake_hands

    def counted(conn):
        if conn.tls.ssl_object.server_side:
            steps.append(r.stats().loop_count)
        shake(conn)

    monkeypatch.setattr(TLSStream, '_shake_hands', counted)
    server = r.listen_tcp('127.0.0.1', 0, ssl=served.context, on_connect=done.append)
    conns = [
        r.connect_tcp(*server.address, ssl=certificates.client(), server_hostname=('example.org', 'localhost')[n % 2])
        for n in range(40)
    ]
    run_until(r, lambda: len(done) == 40)
    assert max(collections.Counter(steps).values()) <= 8
    end(r, *conns, *done)
    server.close()
    turns(r, 2)


# -- expiry


@needs('openssl')
def test_the_first_expiry_date_is_known(issued, certificates, tmp_path):  # noqa: F811
    files = tmp_path / 'long.pem', tmp_path / 'long.key'
    command = ['openssl', 'req', '-x509', '-newkey', 'ed25519', '-nodes', '-subj', '/CN=long', '-days', '20000']
    subprocess.run([*command, '-out', files[0], '-keyout', files[1]], check=True, capture_output=True)
    served = Certificates({None: files, 'example.org': issued['one']})
    for path, end_of_it in ((issued['one'][0], served.expires), (files[0], Certificates({None: files}).expires)):
        dates = subprocess.run(
            ['openssl', 'x509', '-in', path, '-noout', '-dates'], check=True, capture_output=True, text=True
        )
        begin, last = (ssl.cert_time_to_seconds(line.partition('=')[2]) for line in dates.stdout.splitlines())
        assert validity(path.read_text()) == (begin, last) and end_of_it == last
    # One date has a four-digit year, and the other has a two-digit year.
    assert Certificates({None: files}).expires > 2_500_000_000 > served.expires


@pytest.mark.parametrize(
    ('text', 'year'),
    [(b'500101000000Z', 1950), (b'991231235959Z', 1999), (b'000101000000Z', 2000), (b'491231235959Z', 2049)],
)
def test_a_year_of_two_digits_is_between_1950_and_2049(issued, text, year):
    first, end_, _ = issued['one'][0].read_text().partition('-----END CERTIFICATE-----')
    der = re.sub(rb'\d{12}Z', text, ssl.PEM_cert_to_DER_cert(first + end_))
    assert [time.gmtime(moment).tm_year for moment in validity(ssl.DER_cert_to_PEM_cert(der))] == [year, year]


@pytest.mark.parametrize('away', [-5 * 86400, 5 * 86400])
def test_an_expired_or_not_yet_valid_certificate_is_used_with_a_warning(issued, monkeypatch, caplog, away):
    Certificates({None: issued['one']})
    assert not caplog.records
    clock = {name: getattr(time, name) for name in ('strftime', 'gmtime', 'strptime')}
    monkeypatch.setattr('reactor.serve.certificates.time', SimpleNamespace(time=lambda: time.time() + away, **clock))
    served = Certificates({None: issued['one']})
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and str(issued['one'][0]) in record.getMessage() and 'UTC' in caplog.text
    assert subject(Client().shake(served.context)[0], issued) == 'one'


# -- clients of other projects


def outside(loop, *command, said=b''):
    """Run a command while the loop runs, with `said` as its input; return its output."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    found = []
    reader = threading.Thread(target=lambda: found.append(process.communicate(said)[0].decode(errors='replace')))
    reader.start()
    run_until(loop, lambda: not reader.is_alive(), timeout=30)
    return found[0]


def answer(conn, data):
    conn.write(b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n')
    conn.close()


@needs('openssl')
def test_openssl_s_client_gets_the_certificate_for_the_name_that_it_requests(loop, renewable, issued):
    served = Certificates({'example.org': issued['three'], '*.example.com': renewable.files})
    server = loop.listen_tcp('127.0.0.1', 0, answer, ssl=served.context)
    talk = ['openssl', 's_client', '-connect', f'127.0.0.1:{server.address[1]}', '-no_ign_eof']
    assert 'subject=CN = three' in outside(loop, *talk, '-servername', 'example.org').replace('CN=', 'CN = ')
    for name in 'one', 'two':
        renewable(name)
        served.reload()
        said = outside(loop, *talk, '-servername', 'www.example.com').replace('CN=', 'CN = ')
        assert f'subject=CN = {name}' in said
    assert 'unrecognized name' in outside(loop, *talk, '-servername', 'example.net')
    assert 'unrecognized name' in outside(loop, *talk, '-noservername')


@needs('openssl')
@pytest.mark.parametrize('version', ['-tls1_2', '-tls1_3'])
def test_openssl_s_client_resumes_its_session_across_a_reload(loop, renewable, tmp_path, version):
    served = Certificates({'example.org': renewable.files})
    server = loop.listen_tcp('127.0.0.1', 0, answer, ssl=served.context)
    talk = ['openssl', 's_client', '-connect', f'127.0.0.1:{server.address[1]}', '-servername', 'example.org', version]
    session = tmp_path / 'session'
    first = outside(loop, *talk, '-ign_eof', '-sess_out', session, said=b'hello\n')
    assert 'ok' in first and 'Reused' not in first
    renewable('two')
    served.reload()
    second = outside(loop, *talk, '-ign_eof', '-sess_in', session, said=b'hello\n')
    assert 'ok' in second and 'Reused' in second


@needs('curl')
def test_curl_accepts_the_certificate_of_each_name(loop, renewable, issued, certificates):  # noqa: F811
    served = Certificates({'example.org': issued['three'], '*.example.com': renewable.files})
    server = loop.listen_tcp('127.0.0.1', 0, answer, ssl=served.context)
    port = server.address[1]
    for host in 'example.org', 'www.example.com':
        resolve = ['--resolve', f'{host}:{port}:127.0.0.1', '--cacert', certificates.authority]
        assert outside(loop, 'curl', '-sS', '-m', '20', *resolve, f'https://{host}:{port}/') == 'ok\n'
        renewable('two')
        served.reload()
