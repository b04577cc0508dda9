"""Check a file against Google's document "Trace Event Format".

This is written from the document (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU) and knows
nothing of the recorder. Times are compared as whole nanoseconds, because sums of fractions of a microsecond are not
exact.
"""

from __future__ import annotations

import json
import math
from typing import Any

Event = dict[str, Any]

REQUIRED = ('name', 'ph', 'ts', 'pid', 'tid')
PHASES = 'BEXiICM'  # the document has more of them; a file that uses those needs more checks than there are here
METADATA = {  # the arguments that each metadata event must have
    'process_name': ('name', str),
    'process_labels': ('labels', str),
    'process_sort_index': ('sort_index', int),
    'thread_name': ('name', str),
    'thread_sort_index': ('sort_index', int),
}


class WrongTrace(AssertionError):
    """A file breaks a rule of the format; the message has the event."""


def check(text: str) -> list[Event]:
    """Return the events of a trace. Raises WrongTrace for the first rule that is broken."""
    found = json.loads(text, parse_constant=not_json, object_pairs_hook=without_duplicates)
    events = found
    if isinstance(found, dict):
        events = found.get('traceEvents')
        require(found.get('displayTimeUnit', 'ms') in ('ms', 'ns'), 'displayTimeUnit is ms or ns', found)
    require(isinstance(events, list), 'a trace is an array of events, or an object with the array traceEvents', found)
    for event in events:
        check_fields(event)
    for track in tracks(events).values():
        check_order(track)
        check_nesting(track)
    return events


def require(condition: object, rule: str, event: Any) -> None:
    if not condition:
        raise WrongTrace(f'{rule}: {str(event)[:300]}')


def not_json(name: str) -> float:
    raise WrongTrace(f'JSON has no {name}')


def without_duplicates(pairs: list[tuple[str, Any]]) -> Event:
    require(len(dict(pairs)) == len(pairs), 'an object has each key once', pairs)
    return dict(pairs)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def check_fields(event: Any) -> None:
    """Check one event by itself."""
    require(isinstance(event, dict), 'an event is an object', event)
    phase = event.get('ph')
    require(isinstance(phase, str) and phase in PHASES and len(phase) == 1, f'ph is one of {PHASES}', event)
    for key in REQUIRED:
        # The document's own examples of metadata have no time, and the end of a slice needs no name.
        require(key in event or (key, phase) in (('ts', 'M'), ('name', 'E')), f'an event has {key}', event)
    require(isinstance(event.get('name', ''), str), 'name is a string', event)
    require(is_number(event.get('ts', 0)), 'ts is a number', event)
    require(type(event['pid']) is int and type(event['tid']) is int, 'pid and tid are whole numbers', event)
    require(isinstance(event.get('cat', ''), str), 'cat is a string', event)
    require(isinstance(event.get('args', {}), dict), 'args is an object', event)
    args = event.get('args', {})
    if phase == 'X':
        require(is_number(event.get('dur')) and event['dur'] >= 0, 'dur is a number that is not negative', event)
    elif phase in 'iI':
        require(event.get('s', 't') in ('g', 'p', 't'), 's is g, p or t', event)
    elif phase == 'C':
        require(args and all(map(is_number, args.values())), 'each argument of a counter is a number', event)
    elif phase == 'M':
        require(event['name'] in METADATA, f'metadata is one of {", ".join(METADATA)}', event)
        key, kind = METADATA[event['name']]
        require(type(args.get(key)) is kind, f'{event["name"]} has the argument {key}', event)


def tracks(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    """Return the slices of each thread, in the order of the file."""
    found: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        if event['ph'] in 'BEX':
            found.setdefault((event['pid'], event['tid']), []).append(event)
    return found


def ns(event: Event) -> int:
    return round(event['ts'] * 1000)


def end(event: Event) -> int:
    return ns(event) + round(event['dur'] * 1000)


def check_order(track: list[Event]) -> None:
    """B and E events of a thread are in the order of their times; X events may be in any order."""
    last = None
    for event in track:
        if event['ph'] != 'X':
            require(last is None or ns(event) >= last, 'B and E events are in order', event)
            last = ns(event)


def check_nesting(track: list[Event]) -> None:
    """Each slice of a thread begins and ends inside the slice around it, and each B event has its E event."""
    opened: list[Event] = []
    slices: list[tuple[int, int, Event]] = [(ns(event), end(event), event) for event in track if event['ph'] == 'X']
    for event in track:
        if event['ph'] == 'B':
            opened.append(event)
        elif event['ph'] == 'E':
            require(opened, 'an E event ends a B event', event)
            begin = opened.pop()
            require(event.get('name', begin['name']) == begin['name'], 'an E event ends the last B event', event)
            slices.append((ns(begin), ns(event), begin))
    require(not opened, 'each B event has its E event', opened)
    around: list[int] = []  # the ends of the slices that are open, the outermost first
    for began, ended, event in sorted(slices, key=lambda each: (each[0], -each[1])):
        while around and around[-1] <= began:
            around.pop()
        require(not around or ended <= around[-1], 'slices of a thread do not overlap partly', event)
        around.append(ended)
