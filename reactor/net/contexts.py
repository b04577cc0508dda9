"""SSL contexts: whether one fits, what to connect with, and what to do about a handshake that failed."""

from __future__ import annotations

from ..loop.checks import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext, SSLError
    from typing import Any


def hint(ssl: Any, exc: SSLError) -> str:
    """What to do about a handshake that failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f'{exc.verify_message}; trust its issuer in the context, or ask for the name that it has'
    reason = getattr(exc, 'reason', None)  # not all of them have one
    if reason in ('HTTP_REQUEST', 'WRONG_VERSION_NUMBER'):
        return 'it does not speak TLS; check the port'
    if reason == 'CALLBACK_FAILED':
        return 'the sni_callback of the context refused the name that it asked for'
    return 'compare what both sides allow'


def check_context(context: Any, server_side: bool | None = None) -> bool:
    """Whether `context` is for the server's side; TypeError or ValueError when it is not what is needed."""
    import ssl

    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f'ssl takes an ssl.SSLContext, not {shown(context)}')
    protocol = context.protocol
    kinds = {ssl.PROTOCOL_TLS_SERVER: True, ssl.PROTOCOL_TLS_CLIENT: False}
    kind = kinds.get(protocol, server_side)
    if kind is None:
        raise ValueError('this context is for both sides; say which one with server_side=')
    if server_side is not None and kind is not server_side:
        raise ValueError(f'this context is for the {"server" if kind else "client"}, the other side is needed')
    return kind


def client_options(context: SSLContext | bool | None, server_hostname: str | None) -> dict[str, Any]:
    """What `Options` take to connect with; for True a context that verifies, with the system's authorities."""
    if context is None or context is False:
        return {}
    if context is True:
        import ssl

        context = ssl.create_default_context()
    check_context(context, False)
    if context.check_hostname and not server_hostname:
        raise ValueError('this context checks host names: give server_hostname')
    return {'ssl': context, 'server_hostname': server_hostname}
