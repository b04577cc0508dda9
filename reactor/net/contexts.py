"""Check SSL contexts, make the default context for `ssl=True`, and give advice about a failed handshake."""

from __future__ import annotations

from typing import Any

from ..hints import SSLContext, SSLError
from ..loop.checks import shown

# How to make a context for the server's side (True) or the client's (False).
CONTEXTS = {True: 'ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)', False: 'ssl.create_default_context()'}


def hint(ssl: Any, exc: SSLError) -> str:
    """Return the advice for the error message of a failed handshake."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f'{exc.verify_message}; trust its issuer in the context, or pass server_hostname= with a name in it'
    reason = getattr(exc, 'reason', None)  # not every SSLError has a reason
    if reason in ('HTTP_REQUEST', 'WRONG_VERSION_NUMBER'):
        return 'the peer does not speak TLS; check the port'
    if reason == 'CALLBACK_FAILED':
        return 'the sni_callback of the context refused the name that the client asked for'
    if reason == 'NO_SHARED_CIPHER':
        return 'perhaps the context of the server has no certificate: load one with load_cert_chain()'
    return 'compare the TLS versions, ciphers and certificates of both sides'


def check_context(context: Any, server_side: bool | None = None) -> bool:
    """Return whether `context` is for the server's side. Raise TypeError or ValueError if it is not suitable."""
    import ssl

    if not isinstance(context, ssl.SSLContext):
        advice = f'; make one with {CONTEXTS[True]} and load_cert_chain()' if context is True and server_side else ''
        raise TypeError(f'a TLS context must be an ssl.SSLContext, not {shown(context)}{advice}')
    protocol = context.protocol
    kinds = {ssl.PROTOCOL_TLS_SERVER: True, ssl.PROTOCOL_TLS_CLIENT: False}
    kind = kinds.get(protocol, server_side)
    if kind is None:
        raise ValueError('this ssl.SSLContext is for both sides; pass server_side=True or False')
    if server_side is not None and kind is not server_side:
        sides = 'server, but this side is the client' if kind else 'client, but this side is the server'
        raise ValueError(f'this ssl.SSLContext is for the {sides}; make one with {CONTEXTS[server_side]}')
    return kind


def client_options(context: SSLContext | bool | None, server_hostname: str | None) -> dict[str, Any]:
    """Return the TLS arguments of `Options` for connecting.

    True stands for `ssl.create_default_context()`, which trusts the system's certificate authorities.
    """
    if context is None or context is False:
        return {}
    if context is True:
        import ssl

        context = ssl.create_default_context()
    check_context(context, False)
    if context.check_hostname and not server_hostname:
        raise ValueError('this ssl.SSLContext checks host names; pass server_hostname=')
    return {'ssl': context, 'server_hostname': server_hostname}
