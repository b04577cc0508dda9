"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library."""

from . import framing
from .admission.limits import Limits
from .errors import (
    ClientRefused,
    ConnectionClosed,
    ConnectTimeout,
    DrainTimeout,
    FrameTooLong,
    HandleClosed,
    HandshakeTimeout,
    IdleTimeout,
    LifetimeOver,
    ProxyError,
    ProxyTimeout,
    ReactorError,
    ReadTimeout,
    ResolveError,
    ResolveTimeout,
    SelectorFull,
    SendFileError,
    TLSError,
    TooSlow,
    WriteBufferFull,
    WriteTimeout,
)
from .facade import Reactor, run
from .loop.stats import Stats
from .loop.timers import Timer
from .loop.watcher import READ, WRITE
from .net.datagram import DatagramSocket
from .net.listener import Listener
from .net.options import Options
from .net.stream import Stream
from .system.paths import WatchedPath
from .system.process import DEVNULL, PIPE, STDOUT, Process

__version__ = '0.1.0'

__all__ = [
    'DEVNULL',
    'PIPE',
    'READ',
    'STDOUT',
    'WRITE',
    'ClientRefused',
    'ConnectTimeout',
    'ConnectionClosed',
    'DatagramSocket',
    'DrainTimeout',
    'FrameTooLong',
    'HandleClosed',
    'HandshakeTimeout',
    'IdleTimeout',
    'LifetimeOver',
    'Limits',
    'Listener',
    'Options',
    'Process',
    'ProxyError',
    'ProxyTimeout',
    'Reactor',
    'ReactorError',
    'ReadTimeout',
    'ResolveError',
    'ResolveTimeout',
    'SelectorFull',
    'SendFileError',
    'Stats',
    'Stream',
    'TLSError',
    'Timer',
    'TooSlow',
    'WatchedPath',
    'WriteBufferFull',
    'WriteTimeout',
    'framing',
    'run',
]
