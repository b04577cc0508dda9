"""Log lines that say which process wrote them: a text formatter, a JSON formatter, and a stream that does not block.

`run(log='text')` and `run(log='json')` use them. A program can also use the formatters with handlers of its own:

    handler = logging.FileHandler('/var/log/app.log')
    handler.setFormatter(serve.JSONFormatter(worker=listeners.slot))

This module does not import `logging`, so that a program without logs does not import it either. At run time the
formatters are therefore not subclasses of `logging.Formatter`; a handler needs only their method `format`.
"""

from __future__ import annotations

import json
import os
import re
import select
import stat
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..loop.log import describe, log

if TYPE_CHECKING:
    from logging import Formatter
else:
    Formatter = object

PATIENCE = 0.1  # seconds for which a line may block the loop, while the reader of the logs does not read
PIPE_BUF = getattr(select, 'PIPE_BUF', 512)  # bytes that a pipe takes at once when it is writable
UNSAFE = re.compile('[^ -~]')  # everything but the printable characters of ASCII


class LineFormatter(Formatter):
    """The base class of the formatters. No record makes one raise.

    Args:
        worker: The number of this worker's slot (`listeners.slot`), 'parent', or None in a program without workers.
    """

    def __init__(self, worker: int | str | None = None) -> None:
        import logging

        self.worker = worker
        self._standard = logging.Formatter()
        self._not_extra = {*vars(logging.LogRecord('', 0, '', 0, '', (), None)), 'message', 'asctime'}

    def message(self, record: Any) -> str:
        """Return the message with its arguments. If they do not fit, return both."""
        try:
            text: str = record.getMessage()
            return text
        except Exception:
            return f'{describe(record.msg)} (its arguments do not fit: {describe(record.args)})'

    def exception(self, record: Any) -> str | None:
        """Return the traceback of the record, or None."""
        try:
            if record.exc_info and record.exc_info[0] is not None:
                return self._standard.formatException(record.exc_info)
            return record.exc_text or None
        except Exception:
            return describe(record.exc_info)


class TextFormatter(LineFormatter):
    """Formats log records as text: time, level, process, logger and message.

        2026-07-23T10:34:56.789Z WARNING worker 1 (pid 4711) reactor: cannot accept a connection

    A traceback follows on lines of its own. These lines are indented, and so are further lines of a message, so that
    only the first line of a record begins in the first column. Other control characters are written as escapes.

    Args:
        worker: The number of this worker's slot (`listeners.slot`), 'parent', or None in a program without workers.
        utc: Whether the time is in UTC. Otherwise it is the local time with its offset, such as +02:00.
    """

    def __init__(self, worker: int | str | None = None, *, utc: bool = True) -> None:
        super().__init__(worker)
        self.utc = utc

    def format(self, record: Any) -> str:
        """Return the text of a record, without a line break at its end."""
        place = f'pid {record.process or os.getpid()}'
        if self.worker is not None:
            place = f'{self.worker if self.worker == "parent" else f"worker {self.worker}"} ({place})'
        heading = [timestamp(record.created, self.utc), record.levelname, place, record.name]
        parts = [self.message(record), self.exception(record), record.stack_info]
        first = ' '.join(map(printable, heading))
        rest = '\n'.join(printable(part) for part in parts if part)
        return f'{first}: {rest}'.replace('\n', '\n    ')


class JSONFormatter(LineFormatter):
    """Formats log records as JSON, one object a line, in ASCII.

    The keys are `time` (RFC 3339, in UTC), `level`, `logger`, `message`, `pid`, `worker`, and the names of the values
    passed as `extra=`. If the record has them, there are also `exception`, the traceback, and `stack`. The name of an
    extra value that is one of these keys is prefixed with `extra_`. A value that JSON does not have is replaced by its
    repr.

    Args:
        worker: The number of this worker's slot (`listeners.slot`), 'parent', or None in a program without workers.
    """

    def format(self, record: Any) -> str:
        """Return the object of a record, without a line break at its end."""
        fields: dict[str, Any] = {
            'time': timestamp(record.created, utc=True),
            'level': record.levelname,
            'logger': record.name,
            'message': self.message(record),
            'pid': record.process or os.getpid(),
            'worker': self.worker,
        }
        fields |= {'exception': self.exception(record), 'stack': record.stack_info}
        extra = {describe(name): value for name, value in vars(record).items() if name not in self._not_extra}
        for name, value in extra.items():
            fields[f'extra_{name}' if name in fields else name] = value
        for name in 'exception', 'stack':
            if fields[name] is None:
                del fields[name]
        return f'{{{", ".join(f"{_json(name)}: {_json(value)}" for name, value in fields.items())}}}'


def timestamp(seconds: float, utc: bool) -> str:
    """Return a time since the epoch as RFC 3339 has it, with milliseconds. Never raises."""
    try:
        parts = time.gmtime(seconds) if utc else time.localtime(seconds)
        text = f'{time.strftime("%Y-%m-%dT%H:%M:%S", parts)}.{int(seconds % 1 * 1000):03d}'
    except Exception:
        return describe(seconds)  # not a time that the platform knows
    if utc:
        return f'{text}Z'
    hours, minutes = divmod(abs(parts.tm_gmtoff) // 60, 60)
    return f'{text}{"-" if parts.tm_gmtoff < 0 else "+"}{hours:02d}:{minutes:02d}'


def printable(text: object) -> str:
    """Return text with escapes for all characters that cannot be printed, except line breaks and tabs."""
    text = describe(text) if not isinstance(text, str) else text
    if text.isprintable():
        return text
    return ''.join(
        letter if letter.isprintable() or letter in '\n\t' else letter.encode('unicode_escape').decode()
        for letter in text
    )


def _json(value: object) -> str:
    """Return a value as JSON on one line, in ASCII. A value that JSON does not have is replaced by its repr."""
    try:
        text = json.dumps(value, default=_repr, allow_nan=False, ensure_ascii=False)
    except Exception:  # a circular or deeply nested list, NaN, a key that is not text, an int with too many digits
        text = json.dumps(_repr(value), ensure_ascii=False)
    return UNSAFE.sub(_escaped, text)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return describe(value)  # says that the repr failed


def _escaped(match: re.Match[str]) -> str:
    letter = match[0]
    if '\ud800' <= letter <= '\udfff':  # half of a pair: many parsers refuse JSON with the escape of one
        return f'\\\\u{ord(letter):04x}'
    return json.dumps(letter)[1:-1] if letter != '\x7f' else '\\u007f'


class StandardError:
    """A stream for log lines that never raises and never waits for long.

    `sys.stderr` blocks the loop while the reader of a pipe does not read. Here a line that cannot be written within
    PATIENCE is dropped, and so is a line that fails because the disk is full or the pipe is closed. The lines that
    follow are dropped without waiting, until one can be written; then the number of dropped lines is logged.

    Args:
        fd: The descriptor to write to. It stays open.

    Attributes:
        lost: How many lines have been dropped so far.
    """

    def __init__(self, fd: int) -> None:
        self.lost: int = 0
        self.fd: int = fd
        self._most = 1 << 20
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            # Making `fd` itself non-blocking would affect all programs that share the pipe. Opening it again does not.
            try:
                self.fd = os.open(f'/proc/self/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._most = PIPE_BUF
        elif stat.S_ISCHR(mode):
            self._most = PIPE_BUF
        self._ready = select.poll()
        self._ready.register(self.fd, select.POLLOUT)
        self._dropped = 0  # lines since the last one that was written
        self._cut = False  # whether only a part of the last line was written

    def write(self, line: str) -> None:
        """Write a line that ends with a line break."""
        data = memoryview(b'\n' * self._cut + line.encode('utf-8', 'backslashreplace'))
        size = len(data)
        deadline = time.monotonic() + (0 if self._dropped else PATIENCE)
        try:
            while data:
                if not self._ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise BlockingIOError('its reader does not read')
                data = data[os.write(self.fd, data[: self._most]) :]
        except OSError as exc:
            self._cut = self._cut or len(data) < size
            self._dropped += 1
            self.lost += 1
            self._why = str(exc)
            return
        self._cut = False
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            log('warning', '%d log lines were dropped, because standard error failed: %s', dropped, self._why)


FORMATTERS: dict[str, type[TextFormatter | JSONFormatter]] = {'text': TextFormatter, 'json': JSONFormatter}


def log_to_standard_error(style: str, worker: int | str) -> None:
    """Give the root logger a handler with a formatter, and the level INFO.

    An exception that ends the process is logged, too, instead of being printed by the interpreter.

    Args:
        style: 'text' or 'json'.
        worker: The number of this worker's slot, or 'parent'.
    """
    import logging

    logging.root.setLevel(logging.INFO)
    if sys.__stderr__ is None:
        return  # standard error was closed when this process started, and its number may belong to another file now
    handler = logging.StreamHandler(StandardError(sys.__stderr__.fileno()))
    handler.setFormatter(FORMATTERS[style](worker))
    logging.root.addHandler(handler)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = log_uncaught


def lines_lost() -> int:
    """Return how many log lines this process has dropped; 0 if the program's own handlers write the log."""
    logging = sys.modules.get('logging')
    streams = [getattr(handler, 'stream', None) for handler in logging.root.handlers] if logging else []
    return sum(stream.lost for stream in streams if isinstance(stream, StandardError))


def log_uncaught(cls: type[BaseException], exc: BaseException, traceback: TracebackType | None) -> None:
    """Called by the interpreter when an exception ends the process, for example one that `main` has raised."""
    if isinstance(exc, Exception):
        log('critical', 'the process ends with %s', cls.__name__, exc=exc)
    else:
        sys.__excepthook__(cls, exc, traceback)
