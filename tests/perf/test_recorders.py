"""The recorders of the profiler beside py-spy, the table of whole stacks, and the comparison of two profiles."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest

from perf.profiling import diff, flame, kernel, meta, perf_script, speedscope, tachyon
from perf.profiling.speedscope import Frame
from tests.perf.test_profile import META, counters, left_running, run, says_one_line

PERF = shutil.which('perf')
WHOLE = sys.version_info >= (3, 15) and platform.machine() in ('x86_64', 'aarch64')
needs_315 = pytest.mark.skipif(sys.version_info < (3, 15), reason='NOT TESTED: profiling.sampling needs Python 3.15')
needs_perf = pytest.mark.skipif(not PERF, reason='NOT TESTED: no perf (apt-get install linux-perf)')
needs_whole_stacks = pytest.mark.skipif(
    not (PERF and WHOLE), reason='NOT TESTED: whole stacks need Python 3.15 and perf (apt-get install linux-perf)'
)

KERNEL = 0xFFFFFFFF81000000


# -- the output of perf script


def script(*samples, tid=7):
    """Return the output of `perf script` for samples. A frame is (address, symbol, module), innermost first."""
    lines = []
    for frames in samples:
        lines.append(f'  {tid:5}   416.420074: \n')
        lines += [f'\t{address:16x} {symbol} ({module})\n' for address, symbol, module in frames]
        lines.append('\n')
    return lines


def py(name, file='/a/reactor/loop/loop.py'):
    return (0x7F00, f'py::{name}:{file}', '/tmp/perf-7.map')


EVALUATOR = (0x447218, '[unknown]', '/usr/bin/python3.15')
TURN = [EVALUATOR, py('Loop._turn'), EVALUATOR, EVALUATOR, py('<module>', '/a/my app/server (1).py'), EVALUATOR]
IN_SEND = [
    (KERNEL + 1, 'tcp_sendmsg', '[kernel.kallsyms]'),
    (KERNEL, '__x64_sys_sendto', '[kernel.kallsyms]'),
    (0x1234, '__send', '/usr/lib/libc.so.6'),
    (0x447000, 'sock_send', '/usr/bin/python3.15'),
]


def test_the_interpreters_frames_between_python_functions_are_left_out_and_the_others_kept():
    stack = [*IN_SEND, EVALUATOR, py('on_data', '/a/my app/server (1).py'), EVALUATOR, py('Loop._dispatch'), *TURN]
    (sample,) = perf_script.parse(script(stack), 7)['MainThread']
    assert [frame.function for frame in sample] == [
        '<module>', 'Loop._turn', 'Loop._dispatch', 'on_data', 'sock_send', '__send', '__x64_sys_sendto', 'tcp_sendmsg',
    ]  # fmt: skip
    assert sample[3].file == '/a/my app/server (1).py'
    assert [frame.kind for frame in sample] == ['Python'] * 4 + ['C'] * 2 + ['kernel'] * 2


def test_time_in_the_interpreters_loop_is_that_of_the_python_function():
    (sample,) = perf_script.parse(script([EVALUATOR, py('on_data'), *TURN]), 7)['MainThread']
    assert sample[-1].function == 'on_data'


def test_functions_without_a_symbol_are_named_by_their_library_and_shown_once():
    unknown = (0x99, '[unknown]', '/usr/lib/libc.so.6')
    module = (KERNEL, '[unknown]', '[nf_conntrack]')
    (sample,) = perf_script.parse(script([module, unknown, unknown, EVALUATOR, py('on_data'), *TURN]), 7)['MainThread']
    assert [(frame.function, frame.kind) for frame in sample[-2:]] == [('[libc.so.6]', 'C'), ('[kernel]', 'kernel')]


def test_stacks_without_python_functions_are_kept_whole_and_threads_are_told_apart():
    threads = perf_script.parse([*script(IN_SEND, tid=8), *script(IN_SEND, IN_SEND)], 7)
    assert {name: len(stacks) for name, stacks in threads.items()} == {'thread 8': 1, 'MainThread': 2}
    assert len(threads['thread 8'][0]) == 4


def test_a_recording_that_was_written_is_read_as_it_was(tmp_path):
    threads = perf_script.parse(script([EVALUATOR, py('on_data'), *TURN], IN_SEND), 7)
    speedscope.write(tmp_path / 'it.json', threads)
    assert speedscope.read(tmp_path / 'it.json') == threads


# -- the table of whole stacks


@pytest.fixture
def program(tmp_path):
    """A module of a user, in a package, whose function `Server.on_data` begins on line 4."""
    package = tmp_path / 'shop'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'server.py').write_text('\n\nclass Server:\n    def on_data(self):\n        pass\n')
    return package / 'server.py'


def stacks(program):
    """Return 100 samples: 60 in the poll, 30 in dispatch, 20 of them below a callback, 10 between two phases."""
    loop, own = '/a/reactor/loop/loop.py', str(program)
    turn = (Frame('<module>', own, 0), Frame('Loop._turn', loop, 0))
    poll = (*turn, Frame('Loop._poll', loop, 0))
    dispatch = (*turn, Frame('Loop._dispatch', loop, 0), Frame('Stream.handle_read', '/a/reactor/net/stream.py', 0))
    callback = (*dispatch, Frame('Server.on_data', own, 0))
    call = Frame('__x64_sys_sendto', speedscope.KERNEL, 0)
    send = (*callback, Frame('send', '[libc.so.6]', 0), call, Frame('tcp_sendmsg', speedscope.KERNEL, 0))
    return {
        'MainThread': [poll] * 60 + [dispatch] * 10 + [callback] * 3 + [(*send[:-2],)] * 2 + [send] * 15 + [turn] * 10
    }


def test_phases_and_callbacks_are_divided_into_python_c_and_kernel(program):
    result = kernel.table(stacks(program), None, None)
    rows = {row['phase']: row for row in result['phases']}
    assert result['samples'] == 100 and result['in_phases_percent'] == 100
    assert (rows['_dispatch']['python_percent'], rows['_dispatch']['c_percent']) == (13, 2)
    assert rows['_dispatch']['kernel_percent'] == 15 and rows['_poll']['running_percent'] == 60
    (callback,) = rows['_dispatch']['callbacks']
    assert callback['callback'] == 'shop.server:Server.on_data:4' and callback['samples'] == 20
    assert callback['python_percent'] == 3
    assert callback['kernel_functions'] == [{'system_call': 'sendto', 'function': 'tcp_sendmsg', 'percent': 15}]
    assert callback['kernel_path'] == ['__x64_sys_sendto', 'tcp_sendmsg']


def test_the_demo_is_a_program_and_the_standard_library_is_not():
    loop = '/a/reactor/loop/loop.py'
    turn = (Frame('Loop._turn', loop, 0), Frame('Loop._run_timers', loop, 0))
    library = Frame('f', '/usr/lib/python3.15/functools.py', 0)
    installed = Frame('g', '/usr/lib/python3.15/site-packages/shop.py', 0)
    demo = Frame('h', '/a/reactor/demo/server.py', 0)
    assert kernel.callback_of((*turn, library, installed), '/a/reactor/') == installed
    assert kernel.callback_of((*turn, demo), '/a/reactor/') == demo
    assert kernel.callback_of((*turn, library), '/a/reactor/') is None


def spent(clock, cpu, **times):
    return counters(clock, **times) | {'cpu_seconds': cpu, 'preemptions': int(clock)}


def test_with_counters_shares_are_of_the_elapsed_time_and_the_rest_of_a_phase_is_waiting(program):
    # 2 s, of which 1 s was spent running: each sample is half a percent of the elapsed time.
    result = kernel.table(stacks(program), spent(10, 4.0), spent(12, 5.0, idle=1.66, dispatch=0.34))
    rows = {row['phase']: row for row in result['phases']}
    assert rows['_dispatch']['running_percent'] == 15 and rows['_dispatch']['reactor_percent'] == 17
    assert rows['_dispatch']['waiting_percent'] == 2
    assert rows['_poll']['reactor_percent'] == 83
    assert rows['_poll']['waiting_percent'] == 83 - 30 - 5  # it counts the time between phases too, as the clock does
    assert result['agreement']['points'] == 2.0 and result['agreement']['agrees']
    assert result['warnings'] == []
    shown = kernel.text(result, META)
    assert re.search(r'^_dispatch +6\.5 +1\.0 +7\.5 +2\.0 +17\.0$', shown, re.M), shown
    assert re.search(r'^  shop\.server:Server\.on_data:4 +1\.5 +1\.0 +7\.5$', shown, re.M), shown
    assert '7.5  sendto: tcp_sendmsg' in shown and 'recorded by py-spy 1' in shown


def test_a_phase_that_lasts_longer_than_it_runs_is_a_warning_that_says_why(program):
    result = kernel.table(stacks(program), spent(10, 4.0), spent(12, 5.0, idle=1.0, dispatch=1.0))
    assert not result['agreement']['agrees']
    assert 'DISAGREE' in result['warnings'][0] and '2 times another process took the processor' in result['warnings'][0]


def test_broken_stacks_are_not_compared_with_the_clock_and_the_warning_says_which_python_has_whole_ones(program):
    threads = stacks(program)
    threads['MainThread'] += [(Frame('tcp_sendmsg', speedscope.KERNEL, 0),)] * 100
    result = kernel.table(threads, spent(10, 4.0), spent(12, 5.0, idle=1.0, dispatch=1.0))
    assert result['agreement'] is None
    assert 'only 50.0 % of the samples' in result['warnings'][0] and '3.15' in result['warnings'][0]


def test_the_graph_of_whole_stacks_is_coloured_by_kind(program):
    drawn = flame.draw(flame.tree(stacks(program), by_kind=True), 'a', 'b')
    classes = {
        found[2]: found[1]
        for found in re.finditer(r'class="frame p(\d+) s\d"[^>]*><title>([^\n<(]+?)(?: \(| *\n)', drawn)
    }
    colour = flame.GROUPS.index
    assert int(classes['Server.on_data']) == colour('Python')
    assert int(classes['send']) == colour('C') and int(classes['tcp_sendmsg']) == colour('kernel')


# -- Python's own profiler


def test_collapsed_stacks_get_the_paths_of_their_files_from_the_json_lines():
    strings = ['on_data', '/app/server.py', 'main']
    lines = [
        {'type': 'meta', 'mode': 'wall'},
        {'type': 'string_table', 'strings': [{'str_id': n, 'value': value} for n, value in enumerate(strings)]},
        {'type': 'frame_table', 'frames': [{'path_str_id': 1, 'func_str_id': 0, 'line': 5}]},
    ]
    known = tachyon.paths(map(json.dumps, lines))
    threads = tachyon.parse(['tid:7;server.py:main:9;server.py:on_data:5 3\n', 'tid:8;<GC> 1\n'], known, 7)
    assert threads == {
        'MainThread': [(Frame('main', 'server.py', 9), Frame('on_data', '/app/server.py', 5))] * 3,
        'thread 8': [(Frame('<GC>', '', 0),)],
    }


@pytest.mark.parametrize(
    ('log', 'samples', 'errors', 'behind'),
    [
        ('Samples: 990 Errors: 10', 990, 10, False),
        ('Captured 1494 samples in 3.00 seconds\nSample rate: 497 samples/sec\nError rate: 10.00\nWarning: missed 3 '
         'samples from the expected total of 1497 (0.20%)', 1494, 149, False),
        ('Captured 100 samples in 3.00 seconds\nError rate: 0.00\nWarning: missed 900 samples from the expected total '
         'of 1000 (90.00%)', 100, 0, True),
        ('[ perf record: Captured and wrote 1.336 MB /tmp/data (2959 samples) ]', 2959, 0, False),
        ('Processed 5 events and lost 3 chunks!\n[ perf record: Captured and wrote 1 MB x (5 samples) ]', 5, 0, True),
        ('nothing', None, None, False),
    ],
)  # fmt: skip
def test_what_each_recorder_says_of_its_samples_is_understood(log, samples, errors, behind):
    assert meta.sampler(log) == {'samples': samples, 'errors': errors, 'behind': behind}


# -- the choice


def tools(folder, **scripts):
    """Write shell scripts with these bodies; return a PATH that has nothing else but what profile.sh needs."""
    for tool in 'bash cat chrt date dirname grep head kill mkdir mktemp nice rm sed sleep sh tail'.split():
        (folder / tool).symlink_to(shutil.which(tool))
    for name, body in scripts.items():
        path = folder / name.replace('_', '-')
        path.write_text(f'#!/bin/sh\n{body}\n')
        path.chmod(0o755)
    return str(folder)


# Interpreters without and with a profiler of their own. It always fails.
PYTHON = 'case "$2" in {} *sys.executable*) echo "$0"; exit ;; profiling*) exit 1 ;; esac; exec {} "$@"'
NONE = PYTHON.format('*import*profiling*) exit 1 ;;', sys.executable)
OWN = PYTHON.format('*import*profiling*) echo profiling.sampling of Python 3.15; exit ;;', sys.executable)
FAILS = 'case $1 in --version) echo version 1 ;; *) exit 1 ;; esac'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('python', 'others', 'message'),
    [
        (NONE, {}, 'no recorder: install one with pip install py-spy'),
        (NONE, {'perf': FAILS}, 'perf cannot sample'),
        (OWN, {'perf': FAILS}, 'tachyon cannot sample'),
        (OWN, {'perf': FAILS, 'py_spy': FAILS}, 'py-spy cannot sample'),
    ],
    ids=['none', 'perf', 'tachyon', 'py-spy'],
)
def test_auto_takes_the_first_recorder_that_is_there(tmp_path, python, others, message):
    path = tools(tmp_path, python=python, **others)
    interpreter = str(tmp_path / 'python')
    says_one_line(run('--python', interpreter, '--seconds', '1', '--out', tmp_path / 'out', path=path), message)


@pytest.mark.parametrize(
    ('recorder', 'words'), [('py-spy', 'pip install py-spy'), ('tachyon', 'Python 3.15'), ('perf', 'linux-perf')]
)
def test_a_recorder_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path, recorder, words):
    path = tools(tmp_path, python=NONE)
    says_one_line(run('--python', str(tmp_path / 'python'), '--recorder', recorder, path=path), words)


# -- the comparison


def profile_of(counted):
    """Return a recording with {name of the innermost function: samples} below the dispatch phase."""
    dispatch = (Frame('Loop._turn', '/l.py', 1), Frame('Loop._dispatch', '/l.py', 2))
    return {
        'MainThread': [(*dispatch, Frame(name, '/s.py', 3)) for name, count in counted.items() for _ in range(count)]
    }


def test_only_changes_beyond_chance_are_listed_the_largest_first():
    before = profile_of({'parse': 500, 'send': 480, 'gone': 20})
    after = profile_of({'parse': 1380, 'send': 560, 'new': 60})
    result = diff.compare(before, after)
    assert result['samples'] == (1000, 2000)
    assert [(row['name'], row['before'], row['after']) for row in result['functions']] == [
        ('send (/s.py)', 48.0, 28.0),
        ('parse (/s.py)', 50.0, 69.0),
        ('new (/s.py)', 0.0, 3.0),
        ('gone (/s.py)', 2.0, 0.0),
    ]
    same = diff.compare(before, profile_of({'parse': 510, 'send': 471, 'gone': 19}))
    assert same['functions'] == [] and 'none' in diff.text(same, 'wall')


def test_the_graph_shows_what_takes_more_and_what_takes_less():
    before, after = profile_of({'parse': 500, 'send': 500}), profile_of({'parse': 700, 'send': 290, 'new': 10})
    root = flame.tree(after)
    diff.mark(root, flame.tree(before), (1000, 1000))
    (turn,) = root.children.values()
    (dispatch,) = turn.children.values()
    groups = {node.label.split()[0]: node.group for node in dispatch.children.values()}
    assert groups == {'parse': 'much more', 'send': 'much less', 'new': 'more'}
    assert dispatch.group == 'unchanged'
    assert 'before: 50.0 %, now: 70.0 %' in flame.draw(root, 'a', 'b')


# -- with the real recorders


@pytest.mark.slow
@needs_315
def test_on_315_a_profile_needs_no_package(tmp_path):
    bare = os.pathsep.join(
        path for path in os.environ['PATH'].split(os.pathsep) if not (Path(path) / 'py-spy').exists()
    )
    interpreter = getattr(sys, '_base_executable', sys.executable)
    first, second = tmp_path / 'first', tmp_path / 'second'
    for out, options in (first, []), (second, ['--diff', first]):
        done = run('--python', interpreter, '--seconds', '3', '--out', out, *options, path=bare)
        assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
        assert 'recorded by profiling.sampling of Python 3.15' in done.stdout
        assert not left_running()
    result = json.loads((first / 'phases.json').read_text())
    assert result['wall_samples'] > 1000
    lines = [line for row in result['phases'] if row['phase'] == '_dispatch' for line in row['lines']]
    assert any('self.sock.send(' in line['source'] for line in lines)
    names = {path.name for path in second.iterdir()}
    assert names >= {'wall.svg', 'cpu.svg', 'diff-wall.svg', 'diff-cpu.svg', 'diff.txt', 'diff.json', 'index.html'}
    assert 'before %' in done.stdout


@pytest.mark.slow
@needs_whole_stacks
def test_whole_stacks_reach_from_a_callback_into_the_kernel(tmp_path):
    out = tmp_path / 'out'
    before = {*Path('/tmp').glob('perf-*.map')}
    done = run('--kernel', '--seconds', '5', '--out', out)
    if 'is not allowed to trace' in done.stderr:
        pytest.skip('NOT TESTED: perf is not allowed here; run as root, or set kernel.perf_event_paranoid to 1')
    assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
    assert not left_running() and {*Path('/tmp').glob('perf-*.map')} <= before
    result = json.loads((out / 'kernel.json').read_text())
    assert result['in_phases_percent'] >= 95
    assert result['agreement'] or result['warnings']
    (dispatch,) = [row for row in result['phases'] if row['phase'] == '_dispatch']
    (callback,) = [row for row in dispatch['callbacks'] if row['callback'].startswith('perf.profiling.servers:answer:')]
    assert callback['kernel_percent'] > callback['c_percent'] > 0 and callback['python_percent'] > 0
    assert 'tcp_sendmsg' in callback['kernel_path']
    paths = [
        [frame.function for frame in stack]
        for stack in speedscope.read(out / 'kernel.speedscope.json')['MainThread']
        if any(frame.function == 'tcp_sendmsg' for frame in stack)
    ]
    assert all(path.index('Loop._dispatch') < path.index('answer') < path.index('tcp_sendmsg') for path in paths)
    assert 'tcp_sendmsg' in (out / 'kernel.svg').read_text() and 'tcp_sendmsg' in (out / 'index.html').read_text()


@pytest.mark.slow
@needs_perf
@pytest.mark.skipif(WHOLE, reason='stacks are whole here')
def test_before_315_the_table_says_that_stacks_are_not_whole(tmp_path):
    done = run('--kernel', '--seconds', '2', '--out', tmp_path / 'out')
    if done.returncode and 'perf is not on PATH, or does not run' in done.stderr:
        pytest.skip('NOT TESTED: perf does not run on this kernel')
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert 'stacks are whole from Python 3.15 on' in done.stdout
    assert 'costliest functions of the kernel' in done.stdout
