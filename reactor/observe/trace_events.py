"""Recorded turns and callbacks as Chrome trace events, which Perfetto and speedscope show.

The format is "Trace Event Format" (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). The turns,
each phase, the callbacks, and each connection with a recorded callback have a track. Times are microseconds.
"""

from __future__ import annotations

import json
import os
import zlib
from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

from ..hints import StrPath

# The numbers of the tracks. speedscope opens the first one, so these are the callbacks.
CALLBACKS, TURNS, DISPATCH, TIMERS, SOON, COMPLETIONS = range(1, 7)
TRACKS = {
    CALLBACKS: 'callbacks',
    TURNS: 'turns',
    DISPATCH: 'dispatch',
    TIMERS: 'timers',
    SOON: 'soon',
    COMPLETIONS: 'completions',
}
FIRST_CONNECTION = 100  # number of the first track of a connection
MOST_CONNECTIONS = 200  # tracks
AT_ONCE = 100  # events in one piece of JSON
FULL = 1023  # events that epoll reports at once; when it reports so many, others may be waiting
# After a slow callback, the next turn begins at once if something has waited. If it begins later than this share of the
# callback's time, its events have arrived since.
PROMPTLY = 0.1


@dataclass
class Recording:
    """What a flight recorder has recorded.

    Attributes:
        entries: Tuples of the begin and end of one or more turns, in seconds of the loop's clock, and the counters at
            the end. The first entry only has the counters before the second one.
        callbacks: Tuples (phase, begin, end, place, connection or None, left). `left` is the number of events or timers
            of the same turn that came after the callback, or None for a callback shorter than an entry.
        since: Older entries are left out.
        clock_offset: What has to be added to the loop's clock for the time since 1970.
        pid: The process.
        reason: Why the recording was taken.
    """

    entries: list[Any]
    callbacks: list[Any]
    since: float
    clock_offset: float
    pid: int
    reason: str


@dataclass
class Entry:
    """One or more turns: their times in seconds, and what has changed in them."""

    began: float
    ended: float
    turns: int
    events: int
    phases: tuple[float, float, float, float]
    timers: int
    lag: float
    received: int
    sent: int
    incoming: int
    outgoing: int


def write_trace(recording: Recording, path: StrPath) -> None:
    """Write a trace file, atomically."""
    write_whole(Path(path), as_json(recording))


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name, and rename it. Raises OSError, and then leaves nothing behind."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.new')
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def as_json(recording: Recording) -> str:
    """Return the trace as JSON."""
    return ''.join(pieces(recording))


def pieces(recording: Recording) -> Iterator[str]:
    """Yield the trace as JSON, in pieces of a few events.

    While `json.dumps` runs in a thread, the loop waits for the GIL. For all events of ten seconds, that took 0.14 s.
    """
    about = {'reason': recording.reason, 'clock_offset_seconds': recording.clock_offset}
    yield f'{{"displayTimeUnit":"ms","otherData":{_dumps(about)},"traceEvents":['
    events, separator = _events(recording), ''
    while some := list(islice(events, AT_ONCE)):
        yield separator + _dumps(some)[1:-1]
        separator = ','
    yield ']}'


def compressed(recording: Recording) -> tuple[bytes, int]:
    """Return the trace as JSON, compressed with zlib, and its length without compression in bytes."""
    compressor, length = zlib.compressobj(), 0
    found = []
    for piece in pieces(recording):
        length += len(piece)  # JSON from `json.dumps` is ASCII
        found.append(compressor.compress(piece.encode()))
    return b''.join([*found, compressor.flush()]), length


def packed(recording: Recording) -> str:
    """Return the compressed trace in base64: a line for a control socket."""
    return b64encode(compressed(recording)[0]).decode()


def unpacked(text: str) -> str:
    """Undo `packed`."""
    return zlib.decompress(b64decode(text)).decode()


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(',', ':'))


def _events(recording: Recording) -> Iterator[dict[str, Any]]:
    """Yield the events by time. Each part is in this order already."""
    entries = list(_entries(recording))
    parts = _names(recording), _turns(entries), _counters(entries), _callbacks(recording, entries)
    for event in merge(*parts, key=_by_time):
        event['pid'] = recording.pid
        yield event


def _by_time(event: dict[str, Any]) -> tuple[float, float]:
    return event.get('ts', 0.0), -event.get('dur', 0.0)  # what begins at the same time and lasts longer is outside


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _slice(name: str, track: int, began: float, ended: float, **about: Any) -> dict[str, Any]:
    start = _us(began)
    return {'name': name, 'ph': 'X', 'ts': start, 'dur': round(_us(ended) - start, 3), 'tid': track, 'args': about}


def _entries(recording: Recording) -> Iterator[Entry]:
    for before, now in zip(recording.entries, recording.entries[1:], strict=False):
        if now[1] >= recording.since:
            changed = [b - a for a, b in zip(before[2:12], now[2:12], strict=True)]
            dispatch, timers_phase, soon, completions = changed[2:6]
            phases = dispatch, timers_phase, soon, completions
            yield Entry(now[0], now[1], changed[0], changed[1], phases, *changed[6:], *now[12:])


def _names(recording: Recording) -> Iterator[dict[str, Any]]:
    def name(what: str, text: str, track: int) -> dict[str, Any]:
        return {'name': what, 'ph': 'M', 'tid': track, 'args': {'name': text}}

    yield name('process_name', f'reactor {recording.pid}', 0)
    for number, text in TRACKS.items():
        yield name('thread_name', text, number)
    for text, number in _connections(recording).items():
        yield name('thread_name', text, number)


def _connections(recording: Recording) -> dict[str, int]:
    """Return the track of each connection, in the order of their first callbacks."""
    found = dict.fromkeys(one[4] for one in recording.callbacks if one[2] >= recording.since and one[4] is not None)
    return {text: FIRST_CONNECTION + n for n, text in enumerate(found) if n < MOST_CONNECTIONS}


def _turns(entries: list[Entry]) -> Iterator[dict[str, Any]]:
    """Yield the turns and their phases. In an entry of several turns, a phase has the sum of its times."""
    for entry in entries:
        name = 'turn' if entry.turns == 1 else f'{entry.turns} turns'
        yield _slice(name, TURNS, entry.began, entry.ended, events=entry.events, timers=entry.timers)
        began = entry.began
        for track, seconds in zip((DISPATCH, TIMERS, SOON, COMPLETIONS), entry.phases, strict=True):
            if seconds > 0:
                yield _slice(TRACKS[track], track, began, began + seconds)
                began += seconds


def _counters(entries: list[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        lag = entry.lag / entry.timers if entry.timers else 0.0
        for name, values in (
            ('connections', {'incoming': entry.incoming, 'outgoing': entry.outgoing}),
            ('timer lag in ms', {'mean': round(lag * 1e3, 3)}),
            ('bytes', {'received': entry.received, 'sent': entry.sent}),
        ):
            yield {'name': name, 'ph': 'C', 'ts': _us(entry.ended), 'tid': TURNS, 'args': values}


def _callbacks(recording: Recording, entries: list[Entry]) -> Iterator[dict[str, Any]]:
    """Yield each callback in the track of callbacks and in that of its connection, with what waited for its end."""
    tracks = _connections(recording)
    begins = [entry.began for entry in entries]
    for phase, began, ended, place, connection, left in recording.callbacks:
        if ended < recording.since:
            continue
        about = {'phase': phase, 'connection': connection}
        after = bisect_left(begins, ended)
        complete = after and entries[after - 1].ended >= ended  # otherwise the callback's turn has not ended yet
        if complete and left is not None:
            about |= _waited(phase, began, ended, left, entries, after)
        yield _slice(place, CALLBACKS, began, ended, **about)
        if connection in tracks:
            yield _slice(place, tracks[connection], began, ended, **about)


def _waited(phase: str, began: float, ended: float, left: int, entries: list[Entry], after: int) -> dict[str, Any]:
    """Return what waited for the end of a callback, and for how long.

    These are the events and timers that came after it in its own turn, and those of the next turn, which arrived in the
    meantime. The loop does not know when they arrived: the longest wait is that of one that came at the beginning.
    """
    own = entries[after - 1]
    events = left if phase == 'dispatch' else 0
    timers = {'dispatch': own.timers, 'timers': left}.get(phase, 0)
    # The lag of a timer is counted until its turn begins, so add the time from there to the end of the callback.
    lag = timers * (ended - own.began + (own.lag / own.timers if own.timers else 0.0))
    until, before = own.ended if events or timers else began, own
    for number in range(after, len(entries)):
        turn = entries[number]
        if turn.began - before.ended > PROMPTLY * (ended - began):
            break
        events, timers, lag = events + turn.events, timers + turn.timers, lag + turn.lag
        if turn.events or turn.timers:
            until = turn.began + turn.phases[0] + turn.phases[1]
        if turn.events < FULL:
            break
        before = turn
    return {
        'events_that_waited': events,
        'timers_that_waited': timers,
        'waited_at_most_ms': round((until - began) * 1e3, 3),
        'mean_timer_lag_ms': round(lag / timers * 1e3, 3) if timers else 0.0,
    }
