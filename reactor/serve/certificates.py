"""Certificates for a TLS service: selected by the host name that the client asks for, and reloadable at run time.

`Certificates.context` is passed to `listen_tcp(ssl=)`. It contains no certificate itself. When a client sends the host
name that it wants (SNI, RFC 6066, section 3), the handshake is switched to the context with the matching certificate.
The keys for session tickets belong to the first context, so clients can resume their sessions after a reload.

A context in use is never changed. A reload first loads all files into new contexts. The new contexts replace the old
ones together, or not at all if there is an error in any file.
"""

from __future__ import annotations

import calendar
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

from ..errors import ReactorError
from ..loop.checks import shown
from ..loop.log import log

__all__ = ['Certificates']

Path = str | PathLike[str]

NAME = re.compile(r'(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*')
BEGIN, END = '-----BEGIN CERTIFICATE-----', '-----END CERTIFICATE-----'
VERSION, UTC_TIME = 0xA0, 0x17  # ASN.1 tags in a certificate


class Certificates:
    """The certificates of a service, for `listen_tcp(ssl=certificates.context)`.

    Args:
        files: `{name: (certificate, key)}`, with the paths of two PEM files. The certificate file also contains the
            chain. If key is None, the key is in the certificate file. Names are in ASCII, as clients send them
            ('xn--...' for international names). `'*.example.org'` matches names with exactly one more label, unless
            they have their own entry. The name None is for clients that send another name or no name; without it, their
            handshakes are refused (alert unrecognized_name).
        configure: Called as `configure(context)` with each `ssl.SSLContext` that is created, to set ALPN protocols,
            versions, ciphers and client certificates. It must configure all contexts alike. A reload changes ALPN
            protocols and certificate authorities. It does not change versions, ciphers, or whether client certificates
            are required.

    Attributes:
        context: The context for `listen_tcp(ssl=)`.
        expires: The time when the first of the certificates expires, in seconds since 1970, for a status page or an
            alarm.

    Raises:
        ReactorError: A file cannot be used.
        TypeError: An argument has the wrong type.
        ValueError: A name is not a host name, or occurs twice.
    """

    def __init__(
        self,
        files: Mapping[str | None, tuple[Path, Path | None]],
        configure: Callable[[ssl.SSLContext], object] | None = None,
    ) -> None:
        if configure is not None and not callable(configure):
            raise TypeError(f'configure must be callable, not {configure!r}')
        if not hasattr(files, 'items'):
            raise TypeError(f'files must be a mapping {{name: (certificate, key)}}, not {shown(files)}')
        self._configure = configure
        self._files = {check_name(name): check_pair(pair) for name, pair in files.items()}
        if not files or len(files) != len(self._files):
            raise ValueError(f'files is empty or has a name twice; each name needs one certificate: {list(files)}')
        self.reload()
        self.context: ssl.SSLContext = self._new_context()
        self.context.sni_callback = self._choose
        self.context.sslobject_class = QuietSSLObject

    def reload(self) -> None:
        """Read all files again, for new handshakes. Open connections are not affected.

        This blocks for about a millisecond per file. The method can be used as a signal handler:
        `r.add_signal_handler(SIGHUP, certificates.reload)`. A certificate that has expired or is not valid yet is used
        anyway, with a warning in the log. A client that resumes a session is not sent a certificate, so it does not see
        the new one.

        Raises:
            ReactorError: A file cannot be used. The message names the file, and nothing has changed.
        """
        loaded = {pair: self._load(*pair) for pair in self._files.values()}
        self._contexts = {name: loaded[pair][0] for name, pair in self._files.items()}
        self.expires: float = min(end for _, end in loaded.values())

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._configure is not None:
            self._configure(context)
        return context

    def _load(self, certificate: str, key: str | None) -> tuple[ssl.SSLContext, float]:
        context = self._new_context()
        try:
            for path in filter(None, (certificate, key)):
                with open(path, encoding='ascii', errors='replace') as file:
                    text = file.read()
                if path == certificate:
                    chain = text
            context.load_cert_chain(certificate, key, refuse_to_ask)
            if BEGIN not in chain:  # OpenSSL also accepts other kinds of PEM
                raise ReactorError(f'{certificate} has no "{BEGIN}"; convert it with openssl x509 -in {certificate}')
            begin, end = validity(chain)
        except (OSError, ValueError) as exc:
            raise ReactorError(f'{trouble(exc, certificate, key)}; nothing was changed') from exc
        now = time.time()
        if not begin <= now < end:
            dates = (time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(moment)) for moment in (begin, end))
            name = str(certificate)  # log() would show the repr of a Path
            log('warning', 'the certificate in %s is not valid now, only from %s to %s', name, *dates)
        return context, end

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        contexts = self._contexts
        wanted = (name or '').lower().removesuffix('.')
        found = contexts.get(wanted) or contexts.get('*.' + wanted.partition('.')[2]) or contexts.get(None)
        if found is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = found
        return None


class QuietSSLObject(ssl.SSLObject):
    """An `SSLObject` that prints no traceback when a client sends a host name that is not ASCII.

    Python cannot decode such a name for `sni_callback`. It refuses the handshake and calls `sys.unraisablehook`, which
    prints a traceback. Clients could fill the log with tracebacks.
    """

    def do_handshake(self) -> None:
        before = sys.unraisablehook
        if isinstance(before, _Filter):  # installed by a handshake in another thread
            return super().do_handshake()
        sys.unraisablehook = ours = _Filter(before)
        try:
            super().do_handshake()
        finally:
            if sys.unraisablehook is ours:
                sys.unraisablehook = before


class _Filter:
    def __init__(self, before: Callable[[Any], object]) -> None:
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        # Up to Python 3.13, `object` is the name; from 3.14 on, the name is part of the message.
        of_name = type(unraisable.object) is bytes or 'ssl servername callback while' in (unraisable.err_msg or '')
        if unraisable.exc_type is not UnicodeDecodeError or not of_name:
            self.before(unraisable)


def check_name(name: object) -> str | None:
    """Return a host name in the form used for comparison, or None. Raises TypeError or ValueError if it is invalid."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f'a name in files must be a str, or None for all other names, not {name!r}')
    plain = name.lower().removesuffix('.')
    if not NAME.fullmatch(plain):
        raise ValueError(
            f'{name!r} in files is not a host name: '
            'use ASCII (xn--... for international names), and * only as the whole first label'
        )
    return plain


def check_pair(pair: object) -> tuple[str, str | None]:
    """Return the paths of the certificate and the key, which can be None. Raises TypeError for an invalid pair."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f'a certificate must be given as two paths (certificate, key), not {pair!r}')
    certificate, key = pair
    return fspath(certificate), None if key is None else fspath(key)


def refuse_to_ask() -> str:
    """Called when a key needs a password; without this, OpenSSL would ask at the terminal and block the service."""
    raise ValueError('the key is encrypted, and a service cannot ask for its password; decrypt it with openssl pkey')


def trouble(exc: Exception, certificate: str, key: str | None) -> str:
    """Explain what is wrong with the files, and how to fix it."""
    if not isinstance(exc, ssl.SSLError):
        return f'{exc} ({key or certificate})' if isinstance(exc, ValueError) else f'cannot read a certificate: {exc}'
    if exc.reason == 'KEY_VALUES_MISMATCH':
        return f'the key in {key or certificate} does not belong to the certificate in {certificate}: renew both'
    return f'no certificate and key in {certificate} and {key or "the same file"}: give both in PEM, chain in order'


def validity(chain: str) -> tuple[float, float]:
    """Return when the validity of the first certificate in `chain` (PEM) begins and ends, in seconds since 1970.

    See RFC 5280, 4.1.2.5. Raises ValueError if there is no valid certificate.
    """
    begin = chain.index(BEGIN)
    der = ssl.PEM_cert_to_DER_cert(chain[begin : chain.index(END, begin) + len(END)])
    try:
        ((_, certificate),) = _elements(der)
        (_, signed), *_ = _elements(certificate)
        fields = [
            value for tag, value in _elements(signed) if tag != VERSION
        ]  # serial number, signature, issuer, validity
        first, last = (_moment(tag, value.decode()) for tag, value in _elements(fields[3]))
    except (ValueError, IndexError, OverflowError) as exc:
        raise ValueError(f'what follows the first "{BEGIN}" is not a certificate: {exc}') from None
    return first, last


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(der):
        tag, size = der[position : position + 2]
        position += 2
        if size & 0x80:  # the low bits say how many bytes the length has
            position, size = position + (size & 0x7F), int.from_bytes(der[position : position + (size & 0x7F)], 'big')
        yield tag, der[position : position + size]
        position += size


def _moment(tag: int, text: str) -> float:
    if tag == UTC_TIME:  # a year of two digits, for 1950 to 2049
        text = ('19' if text >= '50' else '20') + text
    return calendar.timegm(time.strptime(text, '%Y%m%d%H%M%SZ'))
