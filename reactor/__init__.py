"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library."""

from .errors import (
    ConnectionClosed,
    ConnectTimeout,
    HandleClosed,
    IdleTimeout,
    ReactorError,
    ReadTimeout,
    ResolveError,
    SelectorFull,
    SendFileError,
    WriteBufferFull,
    WriteTimeout,
)
from .facade import Reactor, run
from .loop.stats import Stats
from .loop.timers import Timer
from .loop.watcher import READ, WRITE
from .net.listener import Listener
from .net.options import Options
from .net.stream import Stream

__version__ = '0.1.0'

__all__ = [
    'READ',
    'WRITE',
    'ConnectTimeout',
    'ConnectionClosed',
    'HandleClosed',
    'IdleTimeout',
    'Listener',
    'Options',
    'Reactor',
    'ReactorError',
    'ReadTimeout',
    'ResolveError',
    'SelectorFull',
    'SendFileError',
    'Stats',
    'Stream',
    'Timer',
    'WriteBufferFull',
    'WriteTimeout',
    'run',
]
