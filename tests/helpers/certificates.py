"""Throw-away certificates for tests, made by the `openssl` command: an authority, a server and a client."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

DAYS = '2'
EXTENSIONS = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1
"""


class Certificates:
    """Certificates and keys in a folder, and the TLS contexts that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / 'authority.pem'
        # RFC 5280 requires these extensions; Python 3.13 and later check them.
        usage = ('-addext', 'keyUsage=critical,keyCertSign,cRLSign')
        made = ('-out', str(self.authority), '-subj', '/CN=authority', '-days', DAYS)
        self._run('req', '-x509', *key(folder, 'authority'), *usage, *made)
        for name in 'server', 'client':
            self.issue(name)

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Sign a certificate with the subject `name` for this machine and `hosts`; returns (certificate, key)."""
        request, made = self.folder / f'{name}.csr', self.folder / f'{name}.pem'
        self._run('req', *key(self.folder, name), '-out', str(request), '-subj', f'/CN={name}')
        names = self.folder / f'{name}.ext'
        names.write_text(EXTENSIONS.strip() + ''.join(f',DNS:{host}' for host in hosts) + '\n')
        signed = ('-CA', str(self.authority), '-CAkey', str(self.folder / 'authority.key'), '-CAcreateserial')
        self._run(
            'x509', '-req', '-in', str(request), '-out', str(made), '-extfile', str(names), *signed, '-days', DAYS
        )
        return made, self.folder / f'{name}.key'

    def server(self, **options: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / 'server.pem', self.folder / 'server.key')
        return changed(context, options)

    def server_that_asks(self) -> ssl.SSLContext:
        """Return a context for a server that requires a client certificate."""
        context = self.server(verify_mode=ssl.CERT_REQUIRED)
        context.load_verify_locations(self.authority)
        return context

    def client(self, **options: object) -> ssl.SSLContext:
        return changed(ssl.create_default_context(cafile=str(self.authority)), options)

    def client_with_certificate(self) -> ssl.SSLContext:
        context = self.client()
        context.load_cert_chain(self.folder / 'client.pem', self.folder / 'client.key')
        return context

    def _run(self, *command: str) -> None:
        subprocess.run(['openssl', *command], check=True, capture_output=True)


def key(folder: Path, name: str) -> tuple[str, ...]:
    curve = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes')
    return (*curve, '-keyout', str(folder / f'{name}.key'))


def changed(context: ssl.SSLContext, options: dict[str, object]) -> ssl.SSLContext:
    for name, value in options.items():
        setattr(context, name, value)
    return context


shared: list[Certificates] = []  # otherwise each module that imports the fixture would make its own set


@pytest.fixture(scope='session')
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which('openssl') is None:
        pytest.skip('TLS is untested here: the openssl command, which creates the certificates, is missing')
    if not shared:
        shared.append(Certificates(tmp_path_factory.mktemp('certificates')))
    return shared[0]
