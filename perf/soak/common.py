"""What both processes of a soak share: bytes that can be checked, words for how a connection ended, and the control.

Owns these three. Knows no service and no client. The rule: both sides call an end by the same word.
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
CONTROL_LINE = 1 << 20  # bytes of a line of control

# How a connection may end, at either side. Anything else is an accident.
STATED = {
    'clean', 'ECONNRESET', 'EPIPE', 'ECONNREFUSED', 'ETIMEDOUT', 'ReadTimeout', 'WriteTimeout', 'IdleTimeout',
    'ConnectTimeout', 'HandshakeTimeout', 'TLSError', 'FrameTooLong', 'WriteBufferFull', 'Planned',
    'EMFILE',  # a callback of the server needed a descriptor during a flood: `send_file` keeps one
    # The driver's own words.
    'success', 'cut short', 'too late', 'not answered', 'refused in words', 'stopped',
}  # fmt: skip


class Planned(Exception):
    """What a callback raises because a client asked for it."""


def part(position, size):
    """`size` bytes, no more than a block, of an endless stream that repeats one block."""
    at = position % len(BLOCK)
    return TWICE[at : at + size]


def reason(exc):
    """One word for what `on_close` told."""
    if exc is None:
        return 'clean'
    number = getattr(exc, 'errno', None)
    return errno.errorcode.get(number, str(number)) if number else type(exc).__name__


class Control:
    """The line to the conductor, on a socket that was inherited: each line names a command, each is answered by one.

    The process ends with it, so nothing outlives the conductor.
    """

    def __init__(self, r, descriptor, commands):
        self.r = r
        self.commands = commands
        on_line = framing.lines(self.on_line, limit=CONTROL_LINE)
        self.conn = r.adopt(socket.socket(fileno=descriptor), on_line, on_close=self.on_close)

    def on_line(self, conn, line):
        name, *args = json.loads(line)
        self.say(self.commands[name](*args))

    def on_close(self, conn, exc):
        self.r.stop()

    def say(self, what):
        self.conn.write(json.dumps(what).encode() + b'\n')


class LogWatch(logging.Handler):
    """Counts the lines of the log by what they are about, and keeps the first few that nobody planned."""

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
    """How many objects the collector knows, after it has collected."""
    gc.collect()
    return len(gc.get_objects())


def by_words(counter):
    """A counter with pairs as its keys, for JSON."""
    found = {}
    for (what, how), count in sorted(counter.items()):
        found.setdefault(what, {})[how] = count
    return found
