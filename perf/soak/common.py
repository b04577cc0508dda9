"""Code that the server and the driver of a soak share: checkable bytes, names for outcomes, and the control socket.

Both sides must use the same name for the same outcome.
"""

import collections
import errno
import gc
import json
import logging
import random
import socket

from reactor import framing

BLOCK = random.Random(0).randbytes(1 << 20)
TWICE = BLOCK + BLOCK
CONTROL_LINE = 1 << 20  # bytes of the longest command

# The outcomes with which a connection may end, on either side. Any other outcome is a fault.
STATED = {
    'clean', 'ECONNRESET', 'EPIPE', 'ECONNREFUSED', 'ETIMEDOUT', 'ReadTimeout', 'WriteTimeout', 'IdleTimeout',
    'ConnectTimeout', 'HandshakeTimeout', 'TLSError', 'FrameTooLong', 'WriteBufferFull', 'Planned',
    'EMFILE',  # a callback of the server, such as one that calls `send_file`, needed a descriptor during a flood
    # Outcomes that only the driver uses.
    'success', 'cut short', 'too late', 'not answered', 'refused in words', 'stopped',
}  # fmt: skip


class Planned(Exception):
    """Raised by a callback because a client requested it."""


def part(position, size):
    """Return `size` bytes, at most a block, of an endless stream that repeats one block."""
    at = position % len(BLOCK)
    return TWICE[at : at + size]


def reason(exc):
    """Return a word for the error that was passed to `on_close`."""
    if exc is None:
        return 'clean'
    number = getattr(exc, 'errno', None)
    return errno.errorcode.get(number, str(number)) if number else type(exc).__name__


class CommandSocket:
    """The control connection to the main process, on an inherited socket: each line is a command and gets an answer.

    When the connection ends, this process ends too, so it cannot outlive the main process.
    """

    def __init__(self, r, descriptor, commands):
        self.r = r
        self.commands = commands
        on_line = framing.lines(self.on_line, limit=CONTROL_LINE)
        self.conn = r.adopt(socket.socket(fileno=descriptor), on_line, on_close=self.on_close)

    def on_line(self, conn, line):
        name, *args = json.loads(line)
        self.send(self.commands[name](*args))

    def on_close(self, conn, exc):
        self.r.stop()

    def send(self, answer):
        self.conn.write(json.dumps(answer).encode() + b'\n')


class LogWatch(logging.Handler):
    """Counts the log lines of each kind, and keeps the first few unplanned lines."""

    KEPT = 10

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()
        self.unplanned = []
        logger = logging.getLogger('reactor')
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record):
        raised = record.exc_info and record.exc_info[1]
        if isinstance(raised, Planned):
            kind = 'planned'
        elif getattr(raised, 'errno', None) == errno.EMFILE:
            kind = 'no descriptor left'
        elif 'accepting' in record.msg:
            kind = 'accepting paused'
        else:
            kind = 'unplanned'
            if len(self.unplanned) < self.KEPT:
                self.unplanned.append(f'{record.getMessage()}: {raised!r}')
        self.counts[kind] += 1


def objects():
    """Return the number of objects that the garbage collector tracks, after a collection."""
    gc.collect()
    return len(gc.get_objects())


def by_words(counter):
    """Convert a counter whose keys are pairs to nested dicts, for JSON."""
    found = {}
    for (what, how), count in sorted(counter.items()):
        found.setdefault(what, {})[how] = count
    return found
