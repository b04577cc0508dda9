"""The checker of trace files accepts the examples of the format's document, and finds each kind of mistake."""

from __future__ import annotations

import json

import pytest

from tests.helpers.trace_format import WrongTrace, check


def event(ph, ts=0, **more):
    return {'name': 'work', 'ph': ph, 'ts': ts, 'pid': 1, 'tid': 1} | more


def without(key):
    return {name: value for name, value in event('X', dur=1).items() if name != key}


@pytest.mark.parametrize(
    'events',
    [
        [],
        [event('B'), event('B', 1, name='inner'), event('E', 2, name='inner'), event('E', 3)],
        [event('B'), {'ph': 'E', 'ts': 1, 'pid': 1, 'tid': 1}],
        [event('X', 10, dur=1), event('X', 0, dur=5), event('X', 1, dur=4)],
        [event('X', 0, dur=5), event('X', 5, dur=5), event('X', 10, dur=0)],
        [event('X', 0.1, dur=0.2), event('X', 0.3, dur=1)],
        [event('X', 0, dur=5), event('X', 3, dur=5, tid=2)],
        [event('B'), event('X', 1, dur=2), event('E', 3)],
        [event('C', args={'cats': 0, 'dogs': 7.5})],
        [event('i', s='g'), event('i')],
        [{'name': 'thread_name', 'ph': 'M', 'pid': 1, 'tid': 2, 'args': {'name': 'loop'}}],
    ],
    ids=repr,
)
def test_a_correct_trace_passes_as_an_array_and_as_an_object(events):
    assert check(json.dumps(events)) == events
    assert check(json.dumps({'traceEvents': events, 'displayTimeUnit': 'ns', 'otherData': {}})) == events


@pytest.mark.parametrize(
    'events, rule',
    [
        (['work'], 'an event is an object'),
        *(([without(key)], f'an event has {key}') for key in ('name', 'ts', 'pid', 'tid')),
        ([without('ph')], 'ph is one of'),
        ([event('Z')], 'ph is one of'),
        ([event('X', name=7, dur=1)], 'name is a string'),
        ([event('X', '0', dur=1)], 'ts is a number'),
        ([event('X', True, dur=1)], 'ts is a number'),
        ([event('X', dur=1, tid='one')], 'pid and tid'),
        ([event('X', dur=1, cat=['a'])], 'cat is a string'),
        ([event('X', dur=1, args=[1])], 'args is an object'),
        ([event('X')], 'dur is a number'),
        ([event('X', dur=-0.001)], 'dur is a number that is not negative'),
        ([event('i', s='x')], 's is g, p or t'),
        ([event('C')], 'each argument of a counter'),
        ([event('C', args={'cats': '7'})], 'each argument of a counter'),
        ([event('C', args={'cats': None})], 'each argument of a counter'),
        ([event('M', name='colour', args={'name': 'x'})], 'metadata is one of'),
        ([event('M', name='thread_name', args={})], 'thread_name has the argument name'),
        ([event('B', 2), event('E', 1)], 'B and E events are in order'),
        ([event('E')], 'an E event ends a B event'),
        ([event('B'), event('B', 1, name='inner'), event('E', 2), event('E', 3)], 'an E event ends the last B event'),
        ([event('B')], 'each B event has its E event'),
        ([event('X', 0, dur=5), event('X', 3, dur=5)], 'do not overlap partly'),
        ([event('X', 3, dur=5), event('X', 0, dur=5)], 'do not overlap partly'),
        ([event('X', 0, dur=5), event('X', 4.999, dur=0.002)], 'do not overlap partly'),
        ([event('B', 0), event('X', 1, dur=5), event('E', 3)], 'do not overlap partly'),
    ],
    ids=repr,
)
def test_a_mistake_is_found(events, rule):
    with pytest.raises(WrongTrace, match=rule):
        check(json.dumps(events))


@pytest.mark.parametrize(
    'text',
    [
        '{"events": []}',
        '{"traceEvents": [], "displayTimeUnit": "s"}',
        '[{"name": "work", "ph": "X", "ts": NaN, "dur": 1, "pid": 1, "tid": 1}]',
        '[{"name": "work", "ph": "X", "ts": 1e999, "dur": 1, "pid": 1, "tid": 1}]',
        '[{"name": "work", "name": "twice", "ph": "X", "ts": 1, "dur": 1, "pid": 1, "tid": 1}]',
    ],
)
def test_a_file_that_is_no_trace_is_found(text):
    with pytest.raises(WrongTrace):
        check(text)
