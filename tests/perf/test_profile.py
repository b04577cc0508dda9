"""The profiler: its arithmetic on an artificial recording, the script as users run it, and its pages in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import psutil
import pytest

from perf.profiling import flame, page, phases, speedscope

CHECKOUT = Path(__file__).parents[2]
PERF = CHECKOUT / 'perf'
SCRIPT = PERF / 'profile.sh'
BESIDE = Path(sys.executable).parent
PY_SPY = shutil.which('py-spy') or shutil.which(BESIDE / 'py-spy')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(sys.platform == 'win32' or not shutil.which('bash'), reason='profile.sh needs bash')
needs_py_spy = pytest.mark.skipif(not PY_SPY, reason='NOT TESTED: no py-spy (pip install py-spy)')
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='NOT TESTED: no chromium (apt-get install chromium)')

# {stack of functions: how often it was sampled}. In the pages, `on_data<` must be escaped.
MAIN = ['<module>', 'Loop.run', 'Loop._turn']
SAMPLES = {
    (*MAIN, 'Loop._poll', 'EpollSelector.select'): 60,
    (*MAIN, 'Loop._dispatch', 'Stream.handle_read', 'on_data<'): 25,
    (*MAIN, 'Loop._dispatch', 'Stream.handle_read'): 5,
    (*MAIN, 'TimerHeap.collect'): 3,
    (*MAIN, 'Loop._run_timers', 'tick'): 2,
    (*MAIN, 'Loop._run_completions', 'Loop._poll'): 1,
    (*MAIN,): 2,
    ('<module>',): 2,
}


def recording(samples, thread='MainThread'):
    """Return the content of a speedscope file as py-spy writes it."""
    names = sorted({name for stack in samples for name in stack})
    ticks = [[names.index(name) for name in stack] for stack, count in samples.items() for _ in range(count)]
    return {
        '$schema': 'https://www.speedscope.app/file-format-schema.json',
        'shared': {'frames': [{'name': name, 'file': f'/a/b/{name[:4]}.py', 'line': line, 'col': None}
                              for line, name in enumerate(names, 1)]},
        'profiles': [{
            'type': 'sampled', 'name': thread, 'unit': 'seconds', 'startValue': 0, 'endValue': 1,
            'samples': ticks, 'weights': [0.002] * len(ticks),
        }],
    }  # fmt: skip


def counters(clock, idle=0.0, dispatch=0.0, timers=0.0):
    """Return a line of counters as the servers print it."""
    return {'clock': clock, 'cpu_seconds': clock / 4, 'reads': int(clock * 100), 'incoming': 7, 'timers': 1,
            'handles': 1, 'timer_lag': [1, 2], 'idle_time': idle, 'dispatch_time': dispatch, 'timers_time': timers,
            'soon_time': 0.0, 'completions_time': 0.0}  # fmt: skip


META = {'target': 'keepalive', 'seconds': 2, 'rate': 499, 'commit': 'abc', 'python': '3.11', 'recorder': 'py-spy 1',
        'system': 'here', 'date': 'now', 'recordings': {}, 'load': None, 'warnings': []}  # fmt: skip


@pytest.fixture
def threads(tmp_path):
    path = tmp_path / 'wall.speedscope.json'
    path.write_text(json.dumps(recording(SAMPLES)))
    return speedscope.read(path)


OURS = {'STARTED_BY_TESTS_OF': str(os.getpid())}  # in the environment of all processes that are started here


def run(*options, path=None, timeout=90):
    """Run perf/profile.sh, by default with the interpreter that runs the tests."""
    if '--python' not in options and '--help' not in options:
        options = ('--python', sys.executable, *options)
    path = path or f'{BESIDE}:{os.environ["PATH"]}'
    return subprocess.run([SCRIPT, *options], capture_output=True, text=True, timeout=timeout, cwd='/',
                          env={**os.environ, **OURS, 'PATH': path})  # fmt: skip


def left_running():
    """Return the commands of perf/ that tests of this process have started, not those of other test processes."""
    found = []
    for process in psutil.process_iter(['cmdline', 'environ']):
        command = ' '.join(process.info['cmdline'] or [])
        ours = OURS.items() <= (process.info['environ'] or {}).items()
        if ours and any(str(PERF / 'profiling' / name) in command for name in ('servers.py', 'drive.py')):
            found.append(command)
    return found


def says_one_line(done, *words, status=1):
    assert done.returncode == status, (done.stdout, done.stderr)
    assert re.fullmatch(r'profile\.sh: [^\n]+\n', done.stderr), done.stderr
    for word in words:
        assert word in done.stderr
    assert not done.stdout
    assert not left_running()


# -- arithmetic


def test_samples_are_counted_by_the_outermost_phase_of_their_stack(threads):
    count = phases.Count(threads)
    assert count.samples == 100
    assert count.phases == {'_poll': 60, '_dispatch': 30, '_run_timers': 5, '_run_completions': 1,
                            phases.BETWEEN: 2, phases.OUTSIDE: 2}  # fmt: skip
    lines = [(frame.function, n) for frame, n in count.lines['_dispatch'].most_common()]
    assert lines == [('on_data<', 25), ('Stream.handle_read', 5)]


def test_a_thread_without_a_loop_is_left_out_of_the_shares(threads):
    count = phases.Count(threads | {'worker': [(speedscope.Frame('work', '/w.py', 1),)] * 50})
    assert (count.samples, count.elsewhere) == (100, 50)
    assert count.share(count.phases['_poll']) == 60


def test_samples_between_phases_are_compared_with_the_idle_time(threads):
    count = phases.Count(threads)
    result = phases.table(count, count, counters(10.0), counters(12.0, idle=1.24, dispatch=0.58, timers=0.1))
    assert result['reactor']['elapsed'] == 2 and result['reactor']['seconds']['_poll'] == 1.24
    assert result['reactor']['counts'] == {'reads': 200, 'incoming': 7}
    assert result['agreement'] == {'points': 1.0, 'phase': '_dispatch', 'tolerance': 5.0, 'agrees': True}
    assert result['warnings'] == []
    assert 'sampler and reactor agree: 1.0 points apart' in phases.text(result, META)


def test_a_disagreement_is_a_warning(threads):
    count = phases.Count(threads)
    result = phases.table(count, count, counters(10.0), counters(12.0, idle=1.0, dispatch=0.8))
    assert result['agreement']['points'] == 12.0 and not result['agreement']['agrees']
    assert re.search(r'^WARNING: .*DISAGREE: 12\.0 points', phases.text(result, META), re.M)
    assert 'DISAGREE' in page.page(result, META, {})


def test_without_counters_the_table_shows_only_the_samples(threads):
    count = phases.Count(threads)
    result = phases.table(count, phases.Count({}), None, None)
    assert result['agreement'] is None and result['reactor'] is None
    assert [each['wall_samples'] for each in result['phases']] == [60, 30, 5, 0, 1, 2, 2]
    assert result['warnings'] == ['0 samples with the GIL held: too few for exact CPU shares']


def test_a_picture_of_the_graph_has_a_fixed_width_a_legend_and_no_script(threads):
    drawn = flame.picture(flame.tree(threads), 'a <title>', 'b & c', 900)
    root = ElementTree.fromstring(drawn)
    assert root.get('width') == '900' and 'script' not in drawn and 'foreignObject' not in drawn
    texts = [text.text for text in root.iter('{http://www.w3.org/2000/svg}text')]
    assert texts[:2] == ['a <title>', 'b & c']
    assert {'_poll', '_dispatch'} <= set(texts)
    assert any('_dispatch (' in text for text in texts)
    assert len(flame.picture(flame.tree(threads), '', '', 9)) < len(
        drawn
    )  # frames that are too narrow to see are left out


def test_the_flame_graph_is_as_wide_as_the_samples_and_well_formed(threads):
    drawn = flame.draw(flame.tree(threads), 'a <title>', 'b & c')
    boxes = {}
    for box in ElementTree.fromstring(drawn).iter('{http://www.w3.org/2000/svg}svg'):
        if 'frame' in box.get('class', '').split():
            label = box.find('{http://www.w3.org/2000/svg}text').text
            boxes[label] = (float(box.get('x')[:-1]), float(box.get('width')[:-1]), box.get('class').split()[1])
    assert boxes['all'][:2] == (0, 100)
    assert boxes['Loop._turn (b/Loop.py)'][:2] == (0, 98)
    assert boxes['Loop._dispatch (b/Loop.py)'] == (0, 30, 'p1')
    assert boxes['on_data< (b/on_d.py)'] == (0, 25, 'p1')
    assert boxes['EpollSelector.select (b/Epol.py)'][1:] == (60, 'p0')
    assert boxes['TimerHeap.collect (b/Time.py)'][1:] == (3, 'p2')
    assert 'href' not in drawn and 'http' not in drawn.replace('http://www.w3.org/', '')


def test_several_threads_get_a_level_in_the_tree(threads):
    root = flame.tree(threads | {'worker': [(speedscope.Frame('work', '/w.py', 1),)] * 50})
    assert root.count == 150
    assert {node.label: node.count for node in root.children.values()} == {'MainThread': 100, 'worker': 50}


# -- errors


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--bogus'], 'unknown option --bogus'),
        (['--seconds'], '--seconds needs a value'),
        (['--seconds', 'soon'], "not 'soon'"),
        (['--rate', '0'], "not '0'"),
        (['--workload', 'chess'], "no workload 'chess'"),
        (['--pid', '1', '--workload', 'idle'], 'leave out --workload'),
        (['--recorder', 'tape'], "no recorder 'tape'"),
        (['--kernel', '--native'], 'leave out --native'),
        (['--recorder', 'tachyon', '--native'], 'leave out --native'),
        (['--diff', '/nowhere'], "'/nowhere' has no meta.json"),
    ],
)
def test_a_mistyped_option_is_reported_in_one_line_with_status_2(options, words):
    says_one_line(run(*options), words, '--help', status=2)


def test_help_lists_all_options():
    done = run('--help')
    assert done.returncode == 0 and all(word in done.stdout for word in ('--workload', '--native', '--pid', '--out'))


@pytest.mark.parametrize('python', ['/nowhere/python', 'false', '/bin/true'])
def test_a_python_that_does_not_run_is_named(python):
    says_one_line(run('--python', python), python, '--python PATH')


def test_without_py_spy_the_error_says_what_to_install(tmp_path):
    for tool in ('bash', 'dirname'):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    bare = tmp_path / 'python'
    bare.write_text(f'#!/bin/sh\necho {bare}\n')
    bare.chmod(0o755)
    says_one_line(run('--python', str(bare), path=str(tmp_path)), 'pip install py-spy')


def fake_py_spy(folder, body):
    """Write a shell script named py-spy with this body; return a PATH that begins with its folder."""
    fake = folder / 'py-spy'
    fake.write_text(f'#!/bin/sh\n{body}\n')
    fake.chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


@pytest.mark.slow
def test_without_permission_to_trace_the_error_says_how_to_get_it(tmp_path):
    path = fake_py_spy(tmp_path, 'echo "Error: Permission denied (os error 13)" >&2; exit 1')
    says_one_line(run('--seconds', '1', '--out', tmp_path / 'out', path=path), 'SYS_PTRACE', 'root')


@pytest.mark.slow
def test_too_few_samples_are_refused(tmp_path):
    (tmp_path / 'few.json').write_text(json.dumps(recording({('<module>',): 99})))
    path = fake_py_spy(tmp_path, f'echo Sampling process; cp {tmp_path}/few.json "$5"')
    says_one_line(
        run('--workload', 'idle', '--seconds', '1', '--out', tmp_path / 'out', path=path), '99 samples', '--rate'
    )


@pytest.mark.slow
def test_a_signal_leaves_nothing_running(tmp_path):
    path = fake_py_spy(tmp_path, 'echo Sampling process; exec sleep 60')
    process = subprocess.Popen([SCRIPT, '--python', sys.executable, '--out', tmp_path / 'out'], stderr=subprocess.PIPE,
                               env={**os.environ, **OURS, 'PATH': path})  # fmt: skip
    try:
        wait_until(lambda: len(left_running()) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.communicate()
    assert not left_running()


def wait_until(predicate, timeout=20):
    end = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < end, 'not in time'
        time.sleep(0.05)


# -- with the real py-spy


@pytest.fixture(scope='module')
def profile(tmp_path_factory):
    """`profile(workload)` profiles a workload once, and returns the folder and the output."""
    made = {}

    def make(workload):
        if workload not in made:
            out = tmp_path_factory.mktemp(workload)
            done = run('--workload', workload, '--seconds', '3', '--out', out)
            assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
            assert not left_running()
            made[workload] = out, done.stdout
        return made[workload]

    return make


@pytest.mark.slow
@needs_py_spy
@pytest.mark.parametrize(('workload', 'busy'), [('keepalive', '_dispatch'), ('timers', '_run_timers')])
def test_a_profile_has_all_files_and_compares_the_two_clocks(profile, workload, busy):
    out, printed = profile(workload)
    names = {'wall.speedscope.json', 'cpu.speedscope.json', 'wall.svg', 'cpu.svg', 'phases.txt', 'phases.json',
             'meta.json', 'index.html'}  # fmt: skip
    assert {path.name for path in out.iterdir()} == names
    assert (out / 'phases.txt').read_text() in printed
    assert 'sampler and reactor' in printed
    result, meta = (json.loads((out / name).read_text()) for name in ('phases.json', 'meta.json'))
    by_phase = {each['phase']: each for each in result['phases']}
    assert result['wall_samples'] > 1000 and by_phase[busy]['wall_samples'] > 20
    assert by_phase[busy]['lines'][0]['source']
    assert 2.5 < result['reactor']['elapsed'] < 6 and result['reactor']['counts']['reads'] > 100
    assert abs(sum(each['reactor_percent'] for each in result['phases'] if each['reactor_percent']) - 100) < 5
    assert meta['target'] == workload and meta['load']['errors'] == 0
    assert meta['recordings']['wall']['samples'] == result['wall_samples']


@pytest.mark.slow
@needs_py_spy
def test_a_process_given_with_pid_is_profiled_and_left_running(tmp_path):
    server = subprocess.Popen([sys.executable, '-c', 'import reactor; reactor.run(lambda r: r.call_every(0.01, int))'],
                              cwd=CHECKOUT)  # fmt: skip
    try:
        done = run('--pid', str(server.pid), '--seconds', '1', '--out', tmp_path)
        assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
        assert 'sampler and reactor' not in done.stdout
        assert server.poll() is None
        result = json.loads((tmp_path / 'phases.json').read_text())
        assert result['reactor'] is None and result['phases'][0]['wall_percent'] > 50
    finally:
        server.kill()
        server.wait()


@needs_py_spy
def test_a_process_that_has_ended_is_reported_in_one_line(tmp_path):
    gone = subprocess.Popen(['true'])
    gone.wait()
    says_one_line(run('--pid', str(gone.pid), '--seconds', '1', '--out', tmp_path), 'cannot sample', str(gone.pid))


# -- in a browser


def browse(path, folder, *options):
    """Open a file in a headless browser; return the final content of the page."""
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-sync',
               '--disable-background-networking', '--disable-component-update', f'--user-data-dir={folder}/browser',
               '--enable-logging=stderr', '--v=0', *options, '--dump-dom', path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'CONSOLE' not in done.stderr, done.stderr
    return done.stdout


CLICK = """
window.addEventListener('load', function () {
  for (const flame of document.querySelectorAll('.flame')) {
    const frames = Array.from(flame.querySelectorAll('.frame'));
    const frame = frames.find(each => each.textContent.includes('Loop._dispatch'));
    frame.dispatchEvent(new MouseEvent('click', {bubbles: true}));
    const input = flame.querySelector('input');
    input.value = 'handle_read';
    input.dispatchEvent(new Event('input'));
    flame.setAttribute('data-seen', frame.getAttribute('width') + ' ' + flame.querySelector('.details').textContent);
  }
});
"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize('name', ['index.html', 'wall.svg'])
def test_the_pages_zoom_and_search_in_a_browser_without_an_error(threads, tmp_path, name):
    count = phases.Count(threads)
    result = phases.table(count, count, counters(10.0), counters(12.0, idle=1.24, dispatch=0.58, timers=0.1))
    drawn = flame.draw(flame.tree(threads), 'Wall', 'made by hand')
    made = drawn if name == 'wall.svg' else page.page(result, META, {'wall': drawn, 'cpu': drawn})
    end = '</svg>' if name == 'wall.svg' else '</body>'
    before, _, after = made.rpartition(end)
    (tmp_path / name).write_text(f'{before}<script>{CLICK}</script>{end}{after}')
    seen = re.findall(r'data-seen="([^"]*)"', browse(tmp_path / name, tmp_path))
    assert seen == ['100% matched: 30.0 %'] * (1 if name == 'wall.svg' else 2)


@pytest.mark.slow
@needs_py_spy
@needs_chromium
def test_the_pages_of_a_real_profile_open_without_an_error_and_load_nothing(profile, tmp_path):
    out, _ = profile('keepalive')
    for name in ('index.html', 'wall.svg', 'cpu.svg'):
        assert 'Loop._dispatch' in browse(out / name, tmp_path)
        outside = re.findall(r'(?:src|href)="(?!data:)[^"]*"', (out / name).read_text())
        assert not outside
