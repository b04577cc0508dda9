"""Every call to the operating system that is not a method of a socket, and the differences between platforms.

Below `reactor.facade` no other package imports `socket`, `select`, `selectors`, `time`, `os`, `signal`, `threading` or
`subprocess`, except for constants. So a program can run on a scripted or simulated kernel, which is passed as
`Reactor(kernel=...)`.
"""

from .calls import ONLY_ERROR, Kernel, ResolveFailure
from .platforms import (
    ABSTRACT_PATHS,
    AF_UNIX,
    FD_SETSIZE,
    HAS_IP_MREQN,
    HAS_SENDFILE,
    HAS_SENDMSG,
    IP_BIND_ADDRESS_NO_PORT,
    KEEPALIVE_OPTIONS,
    LOST_ERRORS,
    NODELAY_INHERITED,
    SO_MEMINFO,
    SO_REUSEPORT,
    TCP_DEFER_ACCEPT,
    step_of_waits,
)
from .processes import EXIT_UNKNOWN, SIGKILL, SIGTERM
from .sockets import LeanSocket, close_socket, send_first

__all__ = [
    'ABSTRACT_PATHS',
    'AF_UNIX',
    'EXIT_UNKNOWN',
    'FD_SETSIZE',
    'HAS_IP_MREQN',
    'HAS_SENDFILE',
    'HAS_SENDMSG',
    'IP_BIND_ADDRESS_NO_PORT',
    'KEEPALIVE_OPTIONS',
    'LOST_ERRORS',
    'NODELAY_INHERITED',
    'ONLY_ERROR',
    'SIGKILL',
    'SIGTERM',
    'SO_MEMINFO',
    'SO_REUSEPORT',
    'TCP_DEFER_ACCEPT',
    'Kernel',
    'LeanSocket',
    'ResolveFailure',
    'close_socket',
    'send_first',
    'step_of_waits',
]
