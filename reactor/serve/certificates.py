"""Certificates of a TLS service: chosen by the name that a client asks for, and renewed while it runs.

Owns the contexts made of the files, and which of them a handshake gets. Knows no socket and no loop: `context` goes to
`listen_tcp(ssl=)` like any other. That one holds no certificate. It sees the name (RFC 6066, section 3) and hands the
handshake on to the context that has it now, while the keys of its session tickets stay, so that clients resume across
a reload. The rule: a context in use is never changed. All files are loaded into new contexts first, which replace the
old ones at once or, when anything is wrong with any file, not at all.
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
VERSION, UTC_TIME = 0xA0, 0x17  # tags in a certificate


class Certificates:
    """The certificates of a service, for `listen_tcp(ssl=certificates.context)`; see `reload`.

    files      `{name: (certificate, key)}`: two paths each, the certificate with its chain, in PEM; a key of None is
               in the same file. A name is as clients send it, in A-labels ('xn--...'); `'*.example.org'` stands for one
               label more, where no exact name does; None for all others, and clients that ask for none. Without it
               those are refused (alert unrecognized_name)
    configure  `configure(context)`, called with each `ssl.SSLContext` that is made, to set protocols (ALPN), versions,
               ciphers, client certificates: the same for each. Versions, ciphers and whether to ask for certificates
               are taken once; protocols and authorities from each reload

    `expires` is when the first of the certificates does, in seconds since 1970, for a status or an alarm. Raises
    ReactorError for a file that will not do, TypeError and ValueError for bad arguments.
    """

    context: ssl.SSLContext
    expires: float

    def __init__(
        self,
        files: Mapping[str | None, tuple[Path, Path | None]],
        configure: Callable[[ssl.SSLContext], object] | None = None,
    ) -> None:
        if configure is not None and not callable(configure):
            raise TypeError(f'configure must be callable, not {configure!r}')
        if not hasattr(files, 'items'):
            raise TypeError(f'files is a mapping {{name: (certificate, key)}}, not {shown(files)}')
        self._configure = configure
        self._files = {check_name(name): check_pair(pair) for name, pair in files.items()}
        if not files or len(files) != len(self._files):
            raise ValueError(f'each name needs one certificate: {list(files)}')
        self.reload()
        self.context = self._new_context()
        self.context.sni_callback = self._choose
        self.context.sslobject_class = QuietSSLObject

    def reload(self) -> None:
        """Read all files again, for handshakes from now on; connections that are open do not notice.

        It takes about a millisecond for each file. Made to be given to `r.add_signal_handler(SIGHUP, ...)`. When one
        file will not do, it raises ReactorError, which names it, and all stays as it was. A certificate that is not
        valid yet or any more is taken with a warning in the log. A client that resumes a session sees no certificate,
        and so goes on with what it has seen before.
        """
        loaded = {pair: self._load(*pair) for pair in self._files.values()}
        self._contexts = {name: loaded[pair][0] for name, pair in self._files.items()}
        self.expires = min(end for _, end in loaded.values())

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
            if BEGIN not in chain:  # OpenSSL reads other kinds as well
                raise ReactorError(f'{certificate} has no "{BEGIN}"; openssl x509 -in {certificate} writes it so')
            begin, end = validity(chain)
        except (OSError, ValueError) as exc:
            raise ReactorError(f'{trouble(exc, certificate, key)}; nothing was changed') from exc
        now = time.time()
        if not begin <= now < end:
            dates = (time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(moment)) for moment in (begin, end))
            name = str(certificate)  # it may be a Path
            log('warning', 'the certificate in %s is valid from %s to %s, which is not now', name, *dates)
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
    """One that does not print a traceback when a client asks for a name that is no ASCII, as often as it likes.

    Python cannot decode it for the callback that chooses, says so by `sys.unraisablehook` and refuses the handshake.
    """

    def do_handshake(self) -> None:
        before = sys.unraisablehook
        if isinstance(before, _Filter):  # of a handshake in another thread
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
        # The name is the object up to Python 3.13, and part of the message since.
        of_name = type(unraisable.object) is bytes or 'ssl servername callback while' in (unraisable.err_msg or '')
        if unraisable.exc_type is not UnicodeDecodeError or not of_name:
            self.before(unraisable)


def check_name(name: object) -> str | None:
    """The name as handshakes are compared with it, or None; TypeError or ValueError for what is none."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f'a name is a str, or None for all others, not {name!r}')
    plain = name.lower().removesuffix('.')
    if not NAME.fullmatch(plain):
        raise ValueError(f'{name!r} is no name of a host: ASCII (A-labels, xn--...), *. only as the whole first label')
    return plain


def check_pair(pair: object) -> tuple[str, str | None]:
    """Two paths, the second perhaps None; TypeError for anything else."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f'a certificate is given as two paths (certificate, key), not {pair!r}')
    certificate, key = pair
    return fspath(certificate), None if key is None else fspath(key)


def refuse_to_ask() -> str:
    """In place of a password: OpenSSL would ask for it at the terminal, and the service would stand still."""
    raise ValueError('the key is encrypted, and nobody is there to type its password; give it without one')


def trouble(exc: Exception, certificate: str, key: str | None) -> str:
    """What is wrong with the files, and what to do."""
    if not isinstance(exc, ssl.SSLError):
        return f'{exc} ({key or certificate})' if isinstance(exc, ValueError) else f'cannot read a certificate: {exc}'
    if exc.reason == 'KEY_VALUES_MISMATCH':
        return f'the key in {key or certificate} does not belong to the certificate in {certificate}: renew both'
    return f'no certificate and key in {certificate} and {key or "the same file"}: give both in PEM, the chain in order'


def validity(chain: str) -> tuple[float, float]:
    """From when to when the first certificate in `chain` (PEM) is valid, in seconds since 1970; RFC 5280, 4.1.2.5.

    ValueError for what is not a certificate.
    """
    begin = chain.index(BEGIN)
    der = ssl.PEM_cert_to_DER_cert(chain[begin : chain.index(END, begin) + len(END)])
    try:
        ((_, certificate),) = _elements(der)
        (_, signed), *_ = _elements(certificate)
        fields = [value for tag, value in _elements(signed) if tag != VERSION]  # a number, how, by whom, from and to
        first, last = (_moment(tag, value.decode()) for tag, value in _elements(fields[3]))
    except (ValueError, IndexError, OverflowError) as exc:
        raise ValueError(f'what follows the first "{BEGIN}" is not a certificate: {exc}') from None
    return first, last


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(der):
        tag, size = der[position : position + 2]
        position += 2
        if size & 0x80:  # so many bytes of length
            position, size = position + (size & 0x7F), int.from_bytes(der[position : position + (size & 0x7F)], 'big')
        yield tag, der[position : position + size]
        position += size


def _moment(tag: int, text: str) -> float:
    if tag == UTC_TIME:  # a year of two digits, from 1950 on
        text = ('19' if text >= '50' else '20') + text
    return calendar.timegm(time.strptime(text, '%Y%m%d%H%M%SZ'))
