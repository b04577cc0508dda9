"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library."""

from . import framing
from .errors import (
    ConnectionClosed,
    ConnectTimeout,
    FrameTooLong,
    HandleClosed,
    IdleTimeout,
    ReactorError,
    ReadTimeout,
    ResolveError,
    SelectorFull,
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
    'FrameTooLong',
    'HandleClosed',
    'IdleTimeout',
    'Listener',
    'Options',
    'Reactor',
    'ReactorError',
    'ReadTimeout',
    'ResolveError',
    'SelectorFull',
    'Stats',
    'Stream',
    'Timer',
    'WriteBufferFull',
    'WriteTimeout',
    'framing',
    'run',
]
