"""How much memory a program holds for one connection: what would be freed if the connection ended.

This is `conn.data`, everything to which only `conn.data` refers, directly or through such objects, the bytes that wait
to be sent, and the buffer of `reactor.framing`. An object to which something else refers too is not counted, such as a
room that all guests share, or a message to all of them. To find out, references are counted: an object is looked at
only when all references to it were found. So the cost depends on what is counted, not on what is shared. Objects that
refer to each other in a cycle are not counted, unless the cycle goes through `conn.data`.
"""

from __future__ import annotations

from collections import Counter
from gc import get_referents
from math import inf
from sys import getrefcount, getsizeof
from typing import Any

from ..facade import Reactor
from ..framing import Framed
from ..loop.watcher import Handle

OTHERS = Handle, Reactor  # as `conn.data`, these are not counted: a proxy refers to the other connection
COUNTED = 1 << 60  # the references to an object that is already counted
SHOWN = 5  # places


def held_for(stream: Any, most: float) -> int:
    """Return the bytes that the program holds for a connection; stop counting when there are more than `most`."""
    return _count(stream, most, {}).total()


def show_held(stream: Any) -> str:
    """Return how many bytes the program holds for a connection, and where they are, the most of them first."""
    held = _count(stream, inf, _names(stream.data))
    places = ', '.join(f'{size:,} {place}' for place, size in held.most_common(SHOWN) if size)
    return f'the program holds {held.total():,} bytes for it: {places}'


def _count(stream: Any, most: float, names: dict[int, str]) -> Counter[str]:
    """Return the bytes of each place; `names` has the places of some objects, by `id`."""
    held: Counter[str] = Counter({'waiting to be sent': stream.buffered})
    left = most - stream.buffered
    todo: list[tuple[Any, str]] = []
    if stream.data is not None and not isinstance(stream.data, OTHERS):
        todo.append((stream.data, 'in conn.data'))
    if isinstance(stream.on_data, Framed):
        todo.append((stream.on_data, 'in the buffer of reactor.framing'))
    found = Counter({id(each): COUNTED for each, _ in todo})  # how many references to each object were found
    while todo and left >= 0:
        each, place = todo.pop()
        size = getsizeof(each, 0)
        held[place] += size
        left -= size
        children = get_referents(each)
        while children:
            child, references = _take(children)
            found[id(child)] += 1
            if references == found[id(child)]:
                todo.append((child, names.get(id(child), place)))
            del child  # a tuple may refer to it twice, and this name is a reference, too
    return held


def _take(children: list[Any]) -> tuple[Any, int]:
    """Return the last object of a list, which is removed, and how many other references to the object there are."""
    child = children.pop()
    return child, getrefcount(child) - OWN_REFERENCES


def _names(data: Any) -> dict[int, str]:
    """Return the places of the values of `conn.data`, by `id`."""
    if isinstance(data, dict):
        return {id(value): f'in conn.data[{key!r}]' for key, value in data.items()}
    slots = (slot for kind in type(data).__mro__ for slot in vars(kind).get('__slots__', ()))
    return {id(getattr(data, name, None)): f'in conn.data.{name}' for name in (*getattr(data, '__dict__', ()), *slots)}


OWN_REFERENCES = 0
OWN_REFERENCES = _take([object()])[1]  # those of `_take` itself, which depend on the version of Python
