"""What a soak promises, judged from its rows: did everything end once, for a reason, and is everything back?

Owns the limits and the words. Knows rows only, so a run that was cut is judged as far as it came. The rule: what cannot
be judged yet says so; it is neither kept nor missed.
"""

import json

from .common import STATED

SETTLED = 600  # seconds after which memory must not grow any more
STEEPEST = 1.0  # MB an hour
MORE_OBJECTS = 50  # caches of the standard library, for what happened for the first time
IDLE_CPU = 0.01  # of a core, while nothing happens
HOUR = 3600
PROCESSES = ('server', 'driver')


def load(path):
    """The rows that a file has, the last of which may be cut."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def slope(points):
    """What y grows by in one x, by least squares; None of fewer than two points."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def slopes(rows, process):
    """Growth an hour from SETTLED on, of samples outside of floods: (of RSS in MB, of descriptors, of objects)."""
    late = [row for row in rows if row['row'] == 'sample' and row['seconds'] >= SETTLED and not row['driver']['flood']]
    found = []
    for name, unit in ('rss', 1e6), ('descriptors', 1), ('objects', 1):
        found.append(slope([(row['seconds'] / HOUR, row[process][name] / unit) for row in late]))
    return found


def judge(rows):
    """(promise, True, False or None when it cannot be judged, what was found) of each."""
    base, end, last = first(rows, 'base'), first(rows, 'end'), rows[-1]
    server, driver = last.get('server'), last.get('driver')
    if base is None:
        return [('the run came to its beginning', False, 'no base in these rows')]
    ends = {how for by_reason in server['ends'].values() for how in by_reason}
    strange = ', '.join(sorted(ends - STATED))
    unplanned = server['unplanned'] + driver['unplanned']
    told = sum(count for by_reason in server['ends'].values() for count in by_reason.values())
    found = [
        ('the run is whole', end is not None, f'{last["seconds"]:.0f} s'),
        ('each end at the server has a reason', not strange, strange or f'{len(ends)} kinds'),
        ('each client has what it was promised', not driver['faults'], said(driver['first_faults']) or
         f'{driver["excused"]} disturbed by a flood or a stop'),
        ('the log says nothing that nobody planned', not unplanned, said(unplanned) or str(server['log'])),
    ]  # fmt: skip
    if end is None:
        return found
    stats = server['stats']
    causes = stats['events'] + stats['timers_fired']
    found += [
        ('the server told each connection its end', server['accepts'] == told and not server['open'],
         f'{server["accepts"]:,} accepted, {told:,} told, {server["open"]} open'),
        ('so did the driver', driver['opened'] == driver['ended'] and not driver['outgoing'] + driver['open'],
         f'{driver["opened"]:,} opened, {driver["ended"]:,} ended, {driver["open"]} open'),
        ('turns have a reason', stats['loop_count'] <= causes,
         f'{stats["loop_count"]:,} for {causes:,} events and timers'),
        ('at rest nothing spins', end['idle_cpu'] < IDLE_CPU, f'{end["idle_cpu"]:.2%} of a core'),
        ('both processes ended well', end['codes'] == [0, 0], str(end['codes'])),
    ]  # fmt: skip
    for process in PROCESSES:
        before, after = base[process], end[process]
        kept = before['descriptors'] == after['descriptors']
        found.append((f'descriptors of the {process} are back', kept, change(before, after, 'descriptors')))
        kept = after['objects'] - before['objects'] <= MORE_OBJECTS
        found.append((f'objects of the {process} are back', kept, change(before, after, 'objects')))
    growth = slopes(rows, 'server')[0]
    kept = None if growth is None else growth < STEEPEST
    found.append(('memory of the server is flat', kept, 'too short' if growth is None else f'{growth:+.2f} MB an hour'))
    return found


def first(rows, kind):
    return next((row for row in rows if row['row'] == kind), None)


def change(before, after, name):
    return f'{before[name]:,} -> {after[name]:,}'


def said(lines):
    return '; '.join(lines)


def report(rows):
    """(the table as text, whether every promise that could be judged was kept)."""
    lines, judged = [], judge(rows)
    last = rows[-1]
    if 'server' in last:
        lines += ends_table('clients', last['driver']['outcomes'])
        lines += ends_table('connections of the server', last['server']['ends'])
        for process in PROCESSES:
            lines.append(memory(rows, process))
        lines.append('')
    for promise, kept, details in judged:
        lines.append(f'{"  ?   " if kept is None else "kept  " if kept else "MISSED"} {promise}: {details}')
    return '\n'.join(lines), all(kept is not False for _, kept, _ in judged)


def ends_table(title, by_kind):
    lines = [f'{title}:']
    for kind, by_reason in by_kind.items():
        ends = ', '.join(f'{how} {count:,}' for how, count in sorted(by_reason.items(), key=lambda item: -item[1]))
        lines.append(f'  {kind:<16} {ends}')
    return [*lines, '']


def memory(rows, process):
    samples = [row[process] for row in rows if process in row]
    text = f'{process}: RSS {samples[0]["rss"] / 1e6:.1f} -> {samples[-1]["rss"] / 1e6:.1f} MB, '
    text += f'at most {max(one["rss"] for one in samples) / 1e6:.1f}, CPU {samples[-1]["cpu"]:.0f} s'
    growth = slopes(rows, process)
    if growth[0] is not None:
        text += '; from minute {} on, an hour: RSS {:+.2f} MB, descriptors {:+.1f}, objects {:+.0f}'.format(
            SETTLED // 60, *growth
        )
    return text
