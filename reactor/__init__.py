"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library."""

from typing import TYPE_CHECKING

from . import framing
from .admission.limits import Limits
from .callbacks import (
    AdoptOptions,
    ConnectOptions,
    DatagramOptions,
    FdOptions,
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
    RequestTimeout,
    ResolveError,
    ResolveTimeout,
    SelectorFull,
    SendFileError,
    TLSError,
    TooManyRequests,
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
from .system.pipe import DuplexPipe, ReadPipe, WritePipe
from .system.process import DEVNULL, PIPE, STDOUT, Process

if TYPE_CHECKING:
    from . import observe as observe
    from . import serve as serve
    from . import testing as testing
    from .toolbox.group import Group
    from .toolbox.reconnector import Reconnector, reconnect
    from .toolbox.requests import PendingRequest, Requests

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
    'DuplexPipe',
    'FdOptions',
    'FrameTooLong',
    'Group',
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
    'PendingRequest',
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
    'Reconnector',
    'RequestTimeout',
    'Requests',
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
    'TooManyRequests',
    'TooSlow',
    'WatchedPath',
    'WriteBufferFull',
    'WritePipe',
    'WriteTimeout',
    'framing',
    'reconnect',
    'run',
]

# Imported at the first use of one of these names, because many programs need none of them.
_LATER = {
    'Group': 'toolbox.group',
    'PendingRequest': 'toolbox.requests',
    'Reconnector': 'toolbox.reconnector',
    'Requests': 'toolbox.requests',
    'observe': 'observe',
    'reconnect': 'toolbox.reconnector',
    'serve': 'serve',
    'testing': 'testing',
}

if not TYPE_CHECKING:  # type checkers would accept every misspelt name

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        module = __import__(f'{__name__}.{_LATER[name]}', fromlist=[name])
        return globals().setdefault(name, getattr(module, name, module))

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
