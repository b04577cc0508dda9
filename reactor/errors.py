"""The reactor's own errors.

Owns the exception classes and nothing else. What the operating system says stays an `OSError`; these are for what
the reactor decides: a limit reached, a time run out, a call that came too late. Every message tells what happened,
to which peer, and what to do about it.
"""

from __future__ import annotations


class ReactorError(Exception):
    """Base of every error that the reactor itself decides on."""


class ConnectionClosed(ReactorError):
    """A write after your own `close`, `abort` or `write_eof`, or after `on_close`. Nothing was queued."""


class HandleClosed(ReactorError):
    """A closed handle (listener, timer, reactor) was asked to do something."""


class ResolveError(ReactorError):
    """A name could not be looked up."""


class ResolveTimeout(ResolveError, TimeoutError):
    """A name or an address was not looked up within its timeout."""


class SelectorFull(ReactorError):
    """The selector cannot watch this descriptor (`select` stops at FD_SETSIZE, usually 1024)."""


class WriteBufferFull(ReactorError):
    """A write while `max_buffered` bytes already waited: the receiver is too slow and was cut off."""


class FrameTooLong(ReactorError, ValueError):
    """A peer sent a longer message than its framing allows."""


class ReadTimeout(ReactorError, TimeoutError):
    """No byte arrived within the read timeout."""


class WriteTimeout(ReactorError, TimeoutError):
    """Bytes waited and the peer accepted none within the write timeout, or `close` lasted longer than `linger`."""


class IdleTimeout(ReactorError, TimeoutError):
    """No byte went in either direction within the idle timeout."""


class DrainTimeout(ReactorError, TimeoutError):
    """A connection was still in use when the timeout of `drain` was over."""


class TooSlow(ReactorError, TimeoutError):
    """A client sent, or took, fewer bytes than the `min_rate` of its listener's `Limits`."""


class LifetimeOver(ReactorError, TimeoutError):
    """A connection was open for the `lifetime` of its listener's `Limits`."""


class ClientRefused(ReactorError):
    """A client was refused by `Limits` after a PROXY header had told who it is."""


class ConnectTimeout(ReactorError, TimeoutError):
    """A connection was not established within its timeout, name look-up included."""


class TLSError(ReactorError):
    """TLS failed: the handshake, the peer's certificate, or a stream that was broken or cut short.

    `__cause__` is the `ssl.SSLError`.
    """


class HandshakeTimeout(TLSError, TimeoutError):
    """A TLS handshake was not done within its timeout."""


class ProxyError(ReactorError):
    """A connection to a listener with `proxy_protocol` did not begin with a PROXY header, or with a wrong one."""


class ProxyTimeout(ProxyError, TimeoutError):
    """A PROXY header was not there within `proxy_timeout`."""


class SendFileError(ReactorError, OSError):
    """A file became shorter while `send_file` sent it, or could not be read: what was promised cannot come any more."""
