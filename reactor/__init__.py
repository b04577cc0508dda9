"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library."""

from typing import TYPE_CHECKING, Any

from . import framing
from .admission.limits import Limits
from .callbacks import (
    AdoptOptions,
    ConnectOptions,
    DatagramOptions,
    ListenOptions,
    PipeOptions,
    ReactorOptions,
    StreamOptions,
)
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
from .loop.descriptor import Descriptor
from .loop.idle import Idler
from .loop.notifier import Notifier
from .loop.signals import SignalHandler
from .loop.stats import Stats
from .loop.threads import ThreadCall
from .loop.timers import Timer
from .loop.watcher import READ, WRITE, Handle
from .net.datagram import DatagramSocket
from .net.listener import Listener
from .net.proxy_header import ProxyHeader
from .net.resolver import LookUp
from .net.session import TLSSession
from .net.states import State
from .net.stream import Stream
from .system.paths import WatchedPath
from .system.pipe import ReadPipe, WritePipe
from .system.process import DEVNULL, PIPE, STDOUT, Process

if TYPE_CHECKING:
    from . import observe as observe
    from . import serve as serve
    from . import testing as testing

__version__ = '0.2.0'

__all__ = [
    'DEVNULL',
    'PIPE',
    'READ',
    'STDOUT',
    'WRITE',
    'AdoptOptions',
    'ClientRefused',
    'ConnectOptions',
    'ConnectTimeout',
    'ConnectionClosed',
    'DatagramOptions',
    'DatagramSocket',
    'Descriptor',
    'DrainTimeout',
    'FrameTooLong',
    'Handle',
    'HandleClosed',
    'HandshakeTimeout',
    'IdleTimeout',
    'Idler',
    'LifetimeOver',
    'Limits',
    'ListenOptions',
    'Listener',
    'LookUp',
    'Notifier',
    'PipeOptions',
    'Process',
    'ProxyError',
    'ProxyHeader',
    'ProxyTimeout',
    'Reactor',
    'ReactorError',
    'ReactorOptions',
    'ReadPipe',
    'ReadTimeout',
    'ResolveError',
    'ResolveTimeout',
    'SelectorFull',
    'SendFileError',
    'SignalHandler',
    'State',
    'Stats',
    'Stream',
    'StreamOptions',
    'TLSError',
    'TLSSession',
    'ThreadCall',
    'Timer',
    'TooSlow',
    'WatchedPath',
    'WriteBufferFull',
    'WritePipe',
    'WriteTimeout',
    'framing',
    'run',
]

if not TYPE_CHECKING:  # for a type checker, the module would have every name

    def __getattr__(name: str) -> Any:
        """Import a part of the package when a program first uses it: few need `serve`, `observe` or `testing`."""
        if name not in ('observe', 'serve', 'testing'):
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        __import__(f'{__name__}.{name}')
        return globals()[name]
