"""The reactor's own errors: a limit was exceeded, a timeout expired, or a method was called too late.

Errors of the operating system are passed on unchanged, as `OSError`. Every message says what happened, with which peer,
and what to do about it.
"""

from __future__ import annotations

# What is raised when memory or stack runs out. A constant, because `except (MemoryError, RecursionError)` makes a new
# tuple: while memory is exhausted, this fails in the very clause that would handle the shortage.
EXHAUSTION = (MemoryError, RecursionError)


class ReactorError(Exception):
    """Base class of the errors that the reactor itself raises or reports."""


class ConnectionClosed(ReactorError):
    """Raised by a write after your own `close`, `abort` or `write_eof`, or after `on_close`. Nothing was queued.

    `Requests.fail_all` also passes it to requests whose connection has ended without an error.
    """


class HandleClosed(ReactorError):
    """Raised by methods of a handle (listener, timer, socket, reactor) that is closed."""


class ResolveError(ReactorError):
    """A name or address could not be looked up."""


class ResolveTimeout(ResolveError, TimeoutError):
    """A look-up took longer than its timeout."""


class SelectorFull(ReactorError):
    """The selector cannot watch this descriptor (`select` stops at FD_SETSIZE, usually 1024)."""


class WriteBufferFull(ReactorError):
    """`write` was called while `max_buffered` bytes were waiting. The peer is too slow; the connection was reset."""


class FrameTooLong(ReactorError, ValueError):
    """A peer sent a longer message than its framing allows."""


class ReadTimeout(ReactorError, TimeoutError):
    """No byte was received within the read timeout."""


class WriteTimeout(ReactorError, TimeoutError):
    """The kernel accepted no waiting bytes within the write timeout, or `close` took longer than `linger`."""


class IdleTimeout(ReactorError, TimeoutError):
    """No byte was sent or received within the idle timeout."""


class DrainTimeout(ReactorError, TimeoutError):
    """A connection was still open when the timeout of `drain` expired."""


class TooSlow(ReactorError, TimeoutError):
    """A client sent or received more slowly than the `min_rate` of its `Limits` requires."""


class LifetimeOver(ReactorError, TimeoutError):
    """A connection was open for as long as the `lifetime` of its `Limits` allows."""


class ClientRefused(ReactorError):
    """`Limits` refused a client after a PROXY header had named the client."""


class ConnectTimeout(ReactorError, TimeoutError):
    """A connection was not established within its timeout, which includes the name look-up."""


class RequestTimeout(ReactorError, TimeoutError):
    """A request in a table of `Requests` was not answered within its time limit."""


class TooManyRequests(ReactorError):
    """As many requests as `max_pending` of their `Requests` allows are waiting for their answers."""


class TLSError(ReactorError):
    """TLS failed: the handshake, the verification of the peer, or a stream that was damaged or cut short.

    `__cause__` is the `ssl.SSLError`, if there is one.
    """


class HandshakeTimeout(TLSError, TimeoutError):
    """A TLS handshake took longer than its timeout."""


class ProxyError(ReactorError):
    """The PROXY header of a connection was missing, wrong or incomplete."""


class ProxyTimeout(ProxyError, TimeoutError):
    """A PROXY header was not complete within `proxy_timeout`."""


class SendFileError(ReactorError, OSError):
    """A file became shorter while `send_file` was sending it, or could not be read; the promised bytes are missing."""
