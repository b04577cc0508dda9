"""Judge whether a soak run kept the promises, from the rows of measurements that it recorded.

Nothing else is read, so the completed part of an interrupted run can be judged, too. A promise that cannot be judged
yet is reported as such: it is neither kept nor missed.
"""

import json

from .common import STATED

SETTLED = 600  # seconds of the run after which memory must no longer grow
STEEPEST = 1.0  # MB an hour by which memory may still grow after that
MORE_OBJECTS = 50  # objects that may be added, in caches of the standard library
IDLE_CPU = 0.01  # share of a core that may be used while there is no traffic
HOUR = 3600
PROCESSES = ('server', 'driver')


def read(path):
    """Return the rows of a file; an incomplete last line is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def slope(points):
    """Return the growth of y for each unit of x, by least squares, or None if x has fewer than two different values."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def slopes(rows, process):
    """Return the growth an hour of (RSS in MB, descriptors, objects) after SETTLED, without samples during floods."""
    late = [row for row in rows if row['row'] == 'sample' and row['seconds'] >= SETTLED and not row['driver']['flood']]
    found = []
    for name, unit in ('rss', 1e6), ('descriptors', 1), ('objects', 1):
        found.append(slope([(row['seconds'] / HOUR, row[process][name] / unit) for row in late]))
    return found


def judge(rows):
    """Return (promise, whether it was kept, details) for each.

    The second item is None if the promise cannot be judged.
    """
    base, end, last = first(rows, 'base'), first(rows, 'end'), rows[-1]
    server, driver = last.get('server'), last.get('driver')
    if base is None:
        return [('the run got past its warm-up', False, 'there is no base row')]
    ends = {how for by_reason in server['ends'].values() for how in by_reason}
    strange = ', '.join(sorted(ends - STATED))
    unplanned = server['unplanned'] + driver['unplanned']
    reported = sum(count for by_reason in server['ends'].values() for count in by_reason.values())
    found = [
        ('the run is complete', end is not None, f'{last["seconds"]:.0f} s'),
        ('each connection of the server ends for a stated reason', not strange, strange or f'{len(ends)} kinds'),
        ('each client gets what it was promised', not driver['faults'], '; '.join(driver['first_faults']) or
         f'{driver["excused"]} disturbed by a flood or a stop'),
        ('the log has only planned lines', not unplanned, '; '.join(unplanned) or str(server['log'])),
    ]  # fmt: skip
    if end is None:
        return found
    stats = server['stats']
    causes = stats['events'] + stats['timers_fired']
    found += [
        ('the server calls on_close once for each connection', server['accepts'] == reported and not server['open'],
         f'{server["accepts"]:,} accepted, {reported:,} closed, {server["open"]} open'),
        ('the driver calls on_close once for each connection',
         driver['opened'] == driver['ended'] and not driver['outgoing'] + driver['open'],
         f'{driver["opened"]:,} opened, {driver["ended"]:,} ended, {driver["open"]} open'),
        ('each turn has a reason', stats['loop_count'] <= causes,
         f'{stats["loop_count"]:,} for {causes:,} events and timers'),
        ('nothing spins without traffic', end['idle_cpu'] < IDLE_CPU, f'{end["idle_cpu"]:.2%} of a core'),
        ('both processes end with status 0', end['codes'] == [0, 0], str(end['codes'])),
    ]  # fmt: skip
    for process in PROCESSES:
        before, after = base[process], end[process]
        kept = before['descriptors'] == after['descriptors']
        found.append((f'no descriptor of the {process} is left', kept, change(before, after, 'descriptors')))
        kept = after['objects'] - before['objects'] <= MORE_OBJECTS
        found.append((f'no object of the {process} is left', kept, change(before, after, 'objects')))
    growth = slopes(rows, 'server')[0]
    kept = None if growth is None else growth < STEEPEST
    details = 'the run is too short' if growth is None else f'{growth:+.2f} MB an hour'
    found.append(('the memory of the server does not grow', kept, details))
    return found


def first(rows, kind):
    return next((row for row in rows if row['row'] == kind), None)


def change(before, after, name):
    return f'{before[name]:,} -> {after[name]:,}'


def report(rows):
    """Return (the report as text, whether every promise that could be judged was kept)."""
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
        text += '; growth an hour from minute {} on: RSS {:+.2f} MB, descriptors {:+.1f}, objects {:+.0f}'.format(
            SETTLED // 60, *growth
        )
    return text
