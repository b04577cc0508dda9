"""The public names of the package. The package loads this module at the first use of one of them."""

from typing import TYPE_CHECKING

# Not `from . import framing`: that would ask the package for the name, and the package would ask this module.
import reactor.framing as framing

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

if TYPE_CHECKING:  # the package loads these at the first use, because many programs need none of them
    from .toolbox.group import Group
    from .toolbox.reconnector import Reconnector, reconnect
    from .toolbox.requests import PendingRequest, Requests

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
