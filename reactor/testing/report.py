"""The report of a run: its trace with a name for each connection, and what a person needs to understand a failure.

A report has the violation, the law that it breaks, the program, the system, the faults that could happen, each fault
that did happen, and the end of the trace. In all of them, `client 3` and `server 3` are the two ends of one connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from signal import Signals
from typing import Any

from .agenda import PROCESS_STEP, START
from .faults import ALL
from .kernel import SimKernel
from .ledger import Ledger

LAWS = {
    1: 'every connection ends with exactly one call to on_close, and none of its callbacks is called afterwards',
    2: 'no callback is called inside a call into the API, and a call raises only what its docstring names',
    3: 'on_written is called in the order of the writes, once, and only when the kernel has accepted all bytes',
    4: 'an event belongs to an object, never to a descriptor number',
    5: 'accepts, bytes, datagrams and records of one source in one turn are limited',
    6: 'every queue that a peer can fill has a limit',
    7: 'a handle that cannot progress uses no CPU',
    8: 'an exception in a callback affects at most its own connection, and is reported',
    9: 'what is closed is freed, and nothing leaks',
    10: 'the same callbacks are called with the same bytes on every selector',
    11: 'signal handlers and the wakeup descriptor are shared with the rest of the process',
}
LIVENESS = 'after the faults have stopped, everything that was begun or expected must end'
END = 'the end of the trace:'
SHOWN_LINES = 25  # lines of the trace
SHOWN_STRIKES = 20
SHOWN_CONNECTIONS, SHOWN_EVENTS = 4, 12  # connections that the violation or a strike names, and their last events
Line = tuple[int, int, str, str]  # the turn, the time in ns, a connection or another file, and what happened


def show_report(kernel: SimKernel, ledger: Ledger, text: str, program: str, calm: float, on: dict[str, Any]) -> str:
    """Return the report of a failed run, whose first line has the seed and the first violation.

    Args:
        kernel: The simulated system of the run.
        ledger: The facts about its connections.
        text: The violations.
        program: The name of the program.
        calm: Simulated seconds after which the faults stopped.
        on: The faults that could happen, by name.
    """
    lines = list(named_lines(kernel, ledger))
    strikes = [line for line in lines if line[3].startswith('fault ')]
    before = [f'the last {SHOWN_STRIKES} of them:'] if len(strikes) > SHOWN_STRIKES else []
    return '\n'.join(
        [
            f'seed {kernel.seed}, turn {len(kernel.turns)}: {text}',
            *_sentences(text),
            f'the program: {program}',
            f'the system: {", ".join(_system(kernel))}',
            *_faults(calm, on, len(strikes)),
            *before,
            *map(_show, strikes[-SHOWN_STRIKES:]),
            *_concerned(text, strikes, lines),
            END,
            *map(_show, lines[-SHOWN_LINES:]),
            '',
        ]
    )


def show_lines(kernel: SimKernel, ledger: Ledger) -> str:
    """Return the whole trace as text, one line for each event."""
    return ''.join(f'{_show(line)}\n' for line in named_lines(kernel, ledger))


def named_lines(kernel: SimKernel, ledger: Ledger) -> Iterator[Line]:
    """Yield the lines of the trace of a run, with a name for each connection."""
    ledger.find_attempts()
    names = {end.number: ledger.name(record) for end, record in (ledger.tried | ledger.by_end).items()}
    for end in ledger.tried | ledger.by_end:
        if end.peer is not None and end.peer.number not in names and names[end.number].startswith('client'):
            names[end.peer.number] = f'server{names[end.number][6:]}'  # it was never accepted
    # A strike without a descriptor has the key of its connection, a number too large to be that of a file.
    names.update({end.key: names[end.number] for end in ledger.tried | ledger.by_end if end.number in names})
    processes = [('', kernel), *((f'[{other.name}] ', other.kernel) for other in kernel.others)]
    open_files: list[dict[int, str]] = []  # for each process, the names of the files that are open now
    for _, each in processes:
        private = {fd: file for fd, file in each.files.items() if file.private}
        names.update({file.number: 'the wakeup' for file in private.values()})
        open_files.append(dict.fromkeys(private, 'the wakeup'))
    turn, starts = 0, [*kernel.turns, len(kernel.trace)]
    for index, (time, what, fd, detail) in enumerate(kernel.trace):
        while starts[turn] <= index:
            turn += 1
        process, fd = divmod(fd + 1, PROCESS_STEP)
        fd, mine = fd - 1, open_files[process]
        if what in ('connecting', 'accepted', 'listening'):
            other = f'listener fd={fd}' if what == 'listening' else f'socket fd={fd}'
            mine[fd] = names.setdefault(detail, other)
        who = mine.get(fd, f'socket fd={fd}') if fd >= 0 else ''
        if what == 'close':
            mine.pop(fd, None)
        for name, text in _translate(what, detail, who, names, mine, ledger):
            yield turn, time, f'{processes[process][0]}{name}'.rstrip(), text


def _translate(
    what: str, detail: Any, who: str, names: dict[int, str], open_files: dict[int, str], ledger: Ledger
) -> Iterable[tuple[str, str]]:
    if what == 'fault':
        strike, key = detail
        return [(who or names.get(key, ''), f'fault {strike}: {ALL[strike.partition("@")[0]][1]}')]
    if what == 'ready':
        return [('', 'ready: ' + ', '.join(f'{open_files.get(fd, f"fd={fd}")} {_mask(mask)}' for fd, mask in detail))]
    if what == 'connected':
        return [(names.get(number, ''), what) for number in detail[:1]]
    if what.startswith('on_'):
        number, *values = detail
        return [(ledger.name(ledger.records[number]), ' '.join([what, *map(_value, values)]))]
    if what == 'call':
        number, name, *values = detail
        return [(ledger.name(ledger.records[number]), f'the program calls {" ".join([name, *map(_value, values)])}')]
    if what == 'refused':
        return [(ledger.name(ledger.records[detail]), 'the write returned False')]
    if what == 'arrived':
        return [(names.get(detail[0], ''), f'arrived: {_value(detail[1:])}')]
    if what == 'stalled':
        return [(names.get(detail[0], ''), f'what arrives next takes {detail[1] / 1000:g} s')]
    if what == 'vanished':
        return [(names.get(number, ''), 'its peer vanishes') for number in detail]
    if what in ('timed out', 'trickles'):
        return [(names.get(detail, ''), {'trickles': 'what arrives next comes byte by byte'}.get(what, what))]
    if what == 'clock jumped':
        return [('', f'{what}: {detail / 1000:g} s passed')]
    if what in ('end arrived', 'reset arrived'):
        return [(names.get(detail, ''), what)]
    if what == 'connect failed':
        return [(names.get(detail[0], ''), f'{what}: {detail[1]}')]
    if what == 'signal':
        return [(who, f'signal {Signals(detail).name}')]
    if what in ('connecting', 'accepted', 'close', 'listening') or detail is None:
        return [(who, what)]
    return [(who, f'{what} {_value(detail)}')]


def _show(line: Line) -> str:
    turn, time, who, text = line
    return f'  turn {turn:<5} {(time - START) / 1e9:12.6f}  {f"{who}: " if who else ""}{text}'


def _value(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], bytes):
        count, data = value
        return f'{count} byte{"s" * (count != 1)} {data!r}{"..." if count > len(data) else ""}'
    return str(value)


def _mask(mask: int) -> str:
    return {1: 'readable', 2: 'writable', 3: 'readable and writable'}.get(mask, str(mask))


def _sentences(text: str) -> Iterator[str]:
    for number in sorted({int(number) for number in re.findall(r'\blaw (\d+)', text)} & LAWS.keys()):
        yield f'law {number}: {LAWS[number]}'
    if 'liveness: ' in text or 'forgotten for ' in text:
        yield f'liveness: {LIVENESS}'


def _system(kernel: SimKernel) -> Iterator[str]:
    yield kernel.kind
    yield f'latencies up to {2 * kernel.latency / 1e6:g} ms'
    if kernel.grain:
        yield f'time advances in steps of {kernel.grain / 1e9:.3g} s'


def _faults(calm: float, on: dict[str, Any], happened: int) -> Iterator[str]:
    if not on:
        yield 'no fault is needed: the latencies and buffer sizes of the seed are enough'
        return
    kinds = ', '.join(f'{name} ({100 * site.often:.2g} %)' for name, site in on.items())
    yield f'faults that could happen in the first {calm:.1f} s: {kinds}'
    yield f'faults that happened: {happened or "none"}'


def _concerned(text: str, strikes: list[Line], lines: list[Line]) -> Iterator[str]:
    """Yield the last events of the connections that the violation or a strike names, except those at the very end."""
    words = ' '.join([text, *(who for _, _, who, _ in strikes)])
    found = dict.fromkeys(
        f'{end} {number}' for number in re.findall(r'\b(?:client|server) (\d+)', words) for end in ('client', 'server')
    )
    for name in list(found)[:SHOWN_CONNECTIONS]:
        mine = [line for line in lines if re.search(rf'\b{name}$', line[2])]
        if mine and mine[-1] not in lines[-SHOWN_LINES:]:
            yield f'the last events of {name}:'
            yield from map(_show, mine[-SHOWN_EVENTS:])
