"""Measure this reactor and its peers side by side: `python -m perf.compare`; --help lists the options.

The servers of all peers run at the same time. Each round measures every peer twice, in a random order and then in the
reverse order. A ratio compares figures of the same round, so a change in the speed of the machine affects both of them.
"""

import argparse
import datetime
import subprocess
import sys
import time
from pathlib import Path

from perf.common import machine
from perf.common.command_line import names, refuse_unknown, say
from perf.common.server import PROJECT, Failed

from . import charts, report
from .known_peers import peers, reactor_on
from .rounds import Rounds
from .syscalls import count_all
from .workloads import WORKLOADS
from .workloads.workload import Window, drawn, mean

OURS = 'reactor'
QUICK = {'rounds': 1, 'seconds': 0.5, 'scale': 0.1}
FULL = {'rounds': 9, 'seconds': 1.0, 'scale': 1.0}


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        'python -m perf.compare', description='Measure this reactor and its peers side by side, in rounds.'
    )
    parser.add_argument('--only', type=names, metavar='WORKLOAD[,..]', help='choose from ' + ', '.join(WORKLOADS))
    known = [peer.name for peer in peers()]
    parser.add_argument('--peers', type=names, metavar='NAME[,..]', help='choose from ' + ', '.join(known))
    parser.add_argument(
        '--pythons', type=names, default=[], metavar='PATH[,..]', help='measure the reactor on these interpreters too'
    )
    parser.add_argument('--rounds', type=int, help=f'number of rounds, default {FULL["rounds"]}')
    parser.add_argument(
        '--seconds', type=float, help=f'length of a measurement, default {FULL["seconds"]:g}; bursts: a quarter'
    )
    parser.add_argument('--quick', action='store_true', help='one round of one second, and a tenth of all counts')
    out = PROJECT / 'perf' / 'out' / 'compare'
    parser.add_argument('--out', type=Path, default=out, metavar='DIR', help='results folder, default %(default)s')
    parser.add_argument('--resume', action='store_true', help='keep the finished rounds in DIR and measure the others')
    args = parser.parse_args(argv)
    defaults = QUICK if args.quick else FULL
    args.rounds = args.rounds or defaults['rounds']
    args.seconds = args.seconds or defaults['seconds']
    args.scale = defaults['scale']
    refuse_unknown(parser, args.only, WORKLOADS)
    refuse_unknown(parser, args.peers, known)
    return args


def chosen_peers(wanted, pythons=()):
    """Return the peers to measure, and {name: reason} for those that are left out."""
    found, left_out = [reactor_on(python) for python in pythons], {}
    for peer in peers():
        if wanted is None or peer.name in wanted or peer.name == OURS:
            reason = peer.missing()
            if reason is None:
                found.append(peer)
            else:
                left_out[peer.name] = reason
                say(f'left out: {peer.name}: {reason}')
    return found, left_out


def measure_all(rounds, workloads, found, window, count):
    """Measure `count` rounds of each workload on every peer. Finished rounds are skipped."""
    for workload in workloads:
        left = [index for index in range(count) if not rounds.has(workload.name, index)]
        if left:
            peers = workload.peers(found)
            with workload.servers(peers, window) as servers:
                for index in left:
                    figures, failures = measure_round(workload, peers, servers, window.round(index))
                    rounds.add(workload.name, index, figures, failures)
                    peers = [peer for peer in peers if peer.name not in failures]  # it would only fail again


def measure_round(workload, peers, servers, window):
    """Measure one workload on each peer; return {peer: figures}, and {peer: error} for failures."""
    figures, failures = {}, {}
    for peer in drawn(peers, workload.name, window.index, workload.passes):
        started = time.monotonic()
        try:
            found = workload.measure(peer, servers, window)
            figures.setdefault(peer.name, []).append(found)
            text = '  '.join(f'{found[m.name]:,.5g} {m.unit}' for m in workload.metrics)
        except (Failed, OSError, subprocess.SubprocessError) as exc:
            text = failures[peer.name] = f'{type(exc).__name__}: {exc}'
        say(f'round {window.index + 1} {workload.name:<13} {peer.name:<10} {time.monotonic() - started:5.1f} s  {text}')
    return {name: mean(all_) for name, all_ in figures.items()}, failures


def main(argv=None):
    args = arguments(argv)
    server_core, load_core = machine.cores()
    pinned = server_core is not None
    say(f'server on core {server_core}, load on core {load_core}' if pinned else 'not pinned: fewer than two cores')
    machine.raise_descriptor_limit()
    found, left_out = chosen_peers(args.peers, args.pythons)
    workloads = [WORKLOADS[name] for name in args.only or WORKLOADS]
    window = Window(args.seconds, args.scale, server_core)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {'seconds': args.seconds, 'scale': args.scale, 'peers': [peer.name for peer in found]}
    with machine.on_core(load_core):
        rounds = Rounds(args.out / 'rounds.jsonl', settings, args.resume)
        measure_all(rounds, workloads, found, window, args.rounds)
        syscalls = count_all(workloads, found, window, say)
    result = {
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'commit': machine.commit(PROJECT),
        'machine': machine.description(),
        'versions': machine.versions(),
        'pinned': pinned,
        'left_out': left_out,
        **settings,
        'workloads': report.summaries(workloads, rounds, OURS, syscalls),
    }
    report.write(args.out / 'compare.json', result)
    for path in charts.write(args.out, result, OURS):
        say(f'wrote {path}')
    print(report.table(result, OURS))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        say('interrupted; the finished rounds are kept; --resume continues with the next')
        sys.exit(130)
