"""Every call to the operating system that is not a method of a socket, and the differences between platforms.

Below `reactor.facade` no other package imports `socket`, `select`, `selectors`, `time`, `os`, `signal`, `threading` or
`subprocess`, except for constants. So a program can run on a scripted or simulated kernel, which is passed as
`Reactor(kernel=...)`.
"""

from .calls import Kernel
from .polling import EventSource

__all__ = ['EventSource', 'Kernel']
