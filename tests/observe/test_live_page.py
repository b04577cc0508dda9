"""The live page: the data sent to each viewer, and how a browser shows it.

The browser tests need the Debian packages chromium and chromium-driver.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
import zipfile
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import reactor
from perf.visitors import browser
from reactor import Reactor, Stream
from reactor.observe import FlightRecorder, live, samples, source
from reactor.observe.live import HISTORY, MOST_VIEWERS, PAGE, LivePage, serve_page
from tests.helpers.support import FakeKernel, drain, run_until, turns

CHECKOUT = Path(__file__).parents[2]

HOSTILE = '</script><img src=x onerror="document.title=1">\r\n\r\nevent: end\ndata: "gone"\n\n\u2028\u202e\0\ud800'


class Viewer:
    """A client of the page that runs in the thread of the test and keeps the received data."""

    def __init__(self, r, sockets, page, path='/events', *headers, method='GET', host='localhost'):
        self.sock = sockets.connect(page.listener.address if isinstance(page, LivePage) else page.address)
        if not r.watchers.referenced:
            r.notifier(int)  # keeps the loop running: the page does not, and the fake clock stands still
        lines = [f'{method} {path} HTTP/1.1', f'Host: {host}', *headers, '', '']
        self.sock.send('\r\n'.join(lines).encode())
        self.came = b''
        self.r = r
        run_until(r, lambda: b'\r\n\r\n' in self.read())

    def read(self):
        self.came += drain(self.sock)
        return self.came

    @property
    def status(self):
        return int(self.came.split(b' ')[1])

    @property
    def headers(self):
        head = self.came.partition(b'\r\n\r\n')[0].decode()
        return dict(line.lower().split(': ', 1) for line in head.split('\r\n')[1:])

    @property
    def body(self):
        return self.came.partition(b'\r\n\r\n')[2]

    @property
    def events(self):
        """The (name, id, data) of each received event, parsed as in a browser."""
        found = []
        for block in self.body.decode().split('\n\n')[:-1]:
            fields = dict(line.split(': ', 1) for line in block.split('\n'))
            if 'data' in fields:
                found.append((fields.get('event', 'message'), fields.get('id'), json.loads(fields['data'])))
        return found

    def samples(self):
        self.read()
        return [data for name, _, data in self.events if name == 'message']

    def sample(self):
        """Wait for the next sample and return it."""
        count = len(self.samples())
        run_until(self.r, lambda: len(self.samples()) > count)
        return self.samples()[-1]

    def ended(self):
        self.read()
        return [data for name, _, data in self.events if name == 'end']


@pytest.fixture
def page(fake):
    return LivePage(fake, '127.0.0.1', 0)


def test_the_page_may_run_only_its_own_script(fake, page, sockets):
    first, second = Viewer(fake, sockets, page, '/'), Viewer(fake, sockets, page, '/')
    run_until(fake, lambda: b'</html>' in first.read() and b'</html>' in second.read())
    policy = first.headers['content-security-policy']
    (nonce,) = set(re.findall(r"'nonce-(\w{32})'", policy))
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    assert first.body.count(nonce.encode()) == 2 and b'NONCE' not in first.body
    assert nonce.encode() not in second.body
    assert first.headers['x-content-type-options'] == 'nosniff'


def test_the_page_loads_nothing_from_other_sites_and_never_inserts_text_as_markup():
    text = Path(PAGE).read_text()
    addresses = set(re.findall(r'(?:https?:)?//[\w.-]+\.\w+[^\s\'"]*', text))
    assert addresses == {'http://www.w3.org/2000/svg'}
    for word in (
        'innerHTML',
        'outerHTML',
        'insertAdjacent',
        'document.write',
        'eval(',
        'Function(',
        ' style="',
        '@import',
    ):
        assert word not in text
    assert not re.search(r'\son\w+=', text)


def test_a_viewer_gets_the_history_and_then_a_sample_each_second(fake, page, sockets):
    first = Viewer(fake, sockets, page)
    assert first.headers['content-type'] == 'text/event-stream'
    sent = [first.sample() for _ in range(3)]
    assert b'retry: 1000\n' in first.body
    (name, _, hello), *rest = first.events
    assert name == 'hello' and hello['rows'] == [] and len(hello['fields']) == len(sent[0]['row'])
    assert [data['row'] for *_, data in rest] == [sample['row'] for sample in sent]
    late = Viewer(fake, sockets, page)
    assert late.events[0][2]['rows'] == [sample['row'] for sample in sent]
    again = Viewer(fake, sockets, page, '/events', f'Last-Event-ID: {rest[1][1]}')
    assert again.events[0][2]['rows'] == [sent[2]['row']]
    nonsense = Viewer(fake, sockets, page, '/events', 'Last-Event-ID: ' + '9' * 5000)
    assert len(nonsense.events[0][2]['rows']) == 3


def test_the_history_is_bounded_in_number_and_age(fake, sockets, monkeypatch):
    monkeypatch.setattr(live, 'HISTORY', 20)
    page = LivePage(fake, '127.0.0.1', 0)
    viewer = Viewer(fake, sockets, page)
    run_until(fake, lambda: viewer.read().count(b'\nid: ') > 30)
    late = Viewer(fake, sockets, page)
    assert len(late.events[0][2]['rows']) == 20
    monkeypatch.setattr(samples, 'monotonic', lambda: time.monotonic() + 21)
    late.sample()
    assert len(Viewer(fake, sockets, page).events[0][2]['rows']) == 1


@pytest.mark.parametrize(('age', 'kept'), [(299.99, True), (300.01, False)])
def test_the_history_covers_the_last_five_minutes(fake, sockets, monkeypatch, age, kept):
    now = 1000.0
    monkeypatch.setattr(samples, 'monotonic', lambda: now)
    page = LivePage(fake, '127.0.0.1', 0)
    viewer = Viewer(fake, sockets, page)
    viewer.sample()
    now += age
    viewer.sample()
    assert len(Viewer(fake, sockets, page).events[0][2]['rows']) == 1 + kept


def test_the_samples_agree_with_stats(sockets):
    with Reactor() as r:
        page = LivePage(r, '127.0.0.1', 0)
        server = r.listen_tcp('127.0.0.1', 0, lambda conn, data: conn.write(data))
        for _ in range(5):
            r.connect_tcp('127.0.0.1', server.address[1]).write(b'x')
        sample = Viewer(r, sockets, page).sample()
        fields = dict(zip(samples.FIELDS, sample['row'], strict=True))
        assert (fields['incoming'], fields['outgoing']) == (5, 5)
        stats = r.stats()
        assert stats.incoming == 6  # includes the viewer's connection, which the sample leaves out
        assert sample['totals']['connects'] == stats.connects == 5
        assert sample['totals']['bytes_in'] <= stats.bytes_in
        assert sum(fields[name] for name in ('dispatch', 'timers', 'soon', 'completions')) < 1


def test_the_source_is_not_read_while_there_is_no_viewer(fake, sockets):
    asked = []
    read = source(fake)
    page = LivePage(fake, '127.0.0.1', 0, lambda: asked.append(fake.now) or read())
    asked.clear()
    fake.call_later(60, fake.stop)
    fake.run()
    assert not asked
    viewer = Viewer(fake, sockets, page)
    viewer.sample()
    assert asked
    viewer.sock.close()
    turns(fake, 3)
    asked.clear()
    fake.call_later(60, fake.stop)
    fake.run()
    assert not asked and len(fake.timers) == 0


def test_the_page_does_not_keep_the_loop_running(fake, page, sockets):
    viewer = Viewer(fake, sockets, page)
    viewer.sample()
    (notifier,) = [handle for handle in fake.handles() if type(handle).__name__ == 'Notifier']
    notifier.close()
    assert fake.run() is True


@pytest.mark.parametrize('path, status', [('/', 200), ('/events', 200), ('/favicon.ico', 404), ('/../live.py', 404)])
def test_there_are_two_paths_and_a_head_request_gets_no_stream(fake, page, sockets, path, status):
    asked = Viewer(fake, sockets, page, path, method='HEAD')
    assert asked.status == status
    assert Viewer(fake, sockets, page, path).status == status
    run_until(fake, lambda: asked.sock.recv(1) == b'' if asked.read() else False)


def test_a_request_with_the_host_name_of_another_site_is_refused(fake, page, sockets):
    assert Viewer(fake, sockets, page, '/events', host='attacker.example').status == 403
    assert Viewer(fake, sockets, page, '/', host='127.0.0.1:80').status == 200


def test_at_most_sixteen_viewers_are_accepted(fake, page, sockets):
    viewers = [Viewer(fake, sockets, page) for _ in range(MOST_VIEWERS)]
    assert {viewer.status for viewer in viewers} == {200}
    assert Viewer(fake, sockets, page).status == 503
    viewers[0].sock.close()
    turns(fake, 3)
    assert Viewer(fake, sockets, page).status == 200


def test_a_viewer_that_does_not_read_is_dropped_and_the_others_get_samples(fake, sockets):
    read = source(fake)
    page = LivePage(
        fake, '127.0.0.1', 0, lambda: {'0': read()['0'], **{'x' * 50000 + str(n): read()['0'] for n in range(4)}}
    )
    slow, quick = Viewer(fake, sockets, page), Viewer(fake, sockets, page)

    def dropped():
        quick.read()
        return page.listener.open_connections == 1

    run_until(fake, dropped)
    count = quick.came.count(b'\nid: ')
    run_until(fake, lambda: quick.read().count(b'\nid: ') > count)
    with pytest.raises(ConnectionResetError):
        while slow.sock.recv(1 << 20):
            pass


def test_a_viewer_closed_by_the_program_gets_no_more_samples_and_the_others_do(fake, page, sockets, caplog):
    closed, other = Viewer(fake, sockets, page), Viewer(fake, sockets, page)
    (conn,) = [handle for handle in fake.handles() if getattr(handle, 'peername', 0) == closed.sock.getsockname()]
    conn.pause_reading()  # so that close() waits for the client's end of file
    conn.close()
    other.sample()
    other.sample()
    assert not other.ended() and not caplog.records
    page.end('that was it')
    run_until(fake, other.ended)
    assert other.ended() == ['that was it'] and not caplog.records


def test_a_viewer_that_disconnected_in_this_turn_is_not_subtracted_twice(fake, page, sockets):
    leaving, _ = Viewer(fake, sockets, page), Viewer(fake, sockets, page)
    counts = []
    leaving.sock.close()
    fake.call_later(0, lambda: counts.append(page._counters()['0']['incoming']))  # after EOF, before on_close
    run_until(fake, lambda: counts)
    assert counts == [0]


def test_no_name_can_end_an_event_or_begin_another(fake, sockets):
    read = source(fake)
    figures = {**read()['0'], 'slow': [[HOSTILE, 1, 0.5]]}
    page = LivePage(fake, '127.0.0.1', 0, lambda: {HOSTILE: figures})
    viewer = Viewer(fake, sockets, page)
    sample = viewer.sample()
    assert sample['slow'][0][0] == sample['workers'][0][0] == HOSTILE
    assert [name for name, *_ in viewer.events] == ['hello', 'message']
    assert viewer.body.isascii() and b'\r' not in viewer.body and b'\0' not in viewer.body


def test_a_source_that_raises_is_logged_once_and_ends_only_the_view(sockets, caplog):
    broken = []

    def read():
        if broken:
            raise RuntimeError('no figures today')
        return figures()

    with Reactor(kernel=FakeKernel(), catch_errors=False) as r:
        figures = source(r)
        page = LivePage(r, '127.0.0.1', 0, read)
        viewer = Viewer(r, sockets, page)
        viewer.sample()
        broken.append(True)
        with caplog.at_level(logging.ERROR, 'reactor'):
            run_until(r, viewer.ended)
            r.call_later(60, r.stop)
            r.run()
        assert len(caplog.records) == 1 and 'no figures today' in caplog.text
        assert 'could not be read' in viewer.ended()[0]
        broken.clear()
        Viewer(r, sockets, page).sample()  # the view works again


def test_the_end_event_follows_a_last_sample_and_is_also_sent_to_later_viewers(fake, page, sockets):
    viewer = Viewer(fake, sockets, page)
    page.end('that was it')
    page.end('and again')
    run_until(fake, viewer.ended)
    assert [name for name, *_ in viewer.events] == ['hello', 'message', 'end']
    assert viewer.ended() == ['that was it'] and viewer.sock.recv(1) == b''
    late = Viewer(fake, sockets, page)
    run_until(fake, late.ended)
    assert late.ended() == ['that was it'] and len(late.events[0][2]['rows']) == 1
    assert len(fake.timers) == 0


def test_viewers_are_notified_when_the_reactor_is_closed(sockets):
    with Reactor() as r:
        viewer = Viewer(r, sockets, serve_page(r))
    assert viewer.ended() == ['The program has ended']


def test_a_page_that_records_takes_samples_without_a_viewer_until_its_end(fake, page, sockets):
    page.record()
    page.end('over')
    viewer = Viewer(fake, sockets, page)
    run_until(fake, viewer.ended)
    (hello,) = [data for name, _, data in viewer.events if name == 'hello']
    assert [sample['row'] for sample in viewer.samples()] == hello['rows'] and len(hello['rows']) == 1
    assert viewer.ended() == ['over']
    assert page._timer is None


def test_pages_that_have_ended_leave_nothing_in_the_reactor(fake, sockets):
    for _ in range(3):
        page = LivePage(fake, '127.0.0.1', 0)
        viewer = Viewer(fake, sockets, page)
        page.end('that was it')
        run_until(fake, viewer.ended)
        page.listener.close()
        viewer.sock.close()
        seen = weakref.ref(page)
        del page, viewer
        fake.run_once(0)
        gc.collect()
        assert seen() is None
    assert not fake._exit_callbacks


def test_a_viewer_that_is_aborted_gets_no_message_that_the_program_has_ended(fake, page, sockets):
    viewer = Viewer(fake, sockets, page)
    next(handle for handle in fake.handles() if isinstance(handle, Stream)).abort()
    run_until(fake, lambda: not page._viewers)
    with pytest.raises(ConnectionResetError):
        viewer.read()
    assert b'event: end' not in viewer.came


def test_viewers_are_notified_at_the_end_of_the_program_even_if_the_listener_was_closed(sockets):
    with Reactor() as r:
        listener = serve_page(r)
        viewer = Viewer(r, sockets, listener)
        listener.close()
    assert viewer.ended() == ['The program has ended']


def test_a_listener_that_fails_leaves_nothing(fake, page):
    with pytest.raises(OSError):
        serve_page(fake, '127.0.0.1', page.listener.address[1])
    assert fake.handles() == [page.listener]


@pytest.mark.parametrize(
    'host, expected', [('127.0.0.1', '127.0.0.1'), (None, r'\[::1\]|127.0.0.1'), ('0.0.0.0', '127.0.0.1')]
)
def test_the_page_knows_its_url(fake, host, expected):
    page = LivePage(fake, host, 0)
    assert re.fullmatch(rf'http://({expected}):{page.listener.address[1]}/', page.url)


def test_the_servers_of_the_experiment_load_nothing_for_the_page():
    code = 'import sys; import reactor.demo.child; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, cwd=CHECKOUT, timeout=30)
    assert not set(done.stdout.split()) & {'reactor.observe', 'json', 'ipaddress'}, done.stderr


# -- in a browser


@contextmanager
def experiment(*options):
    """Run an experiment with the live page; yield the process, the URL and the lines of progress."""
    command = [sys.executable, '-m', 'reactor.demo', '--dashboard', '0', '--json', *options]
    process = subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = []
    reading = None
    try:
        url = re.fullmatch(r'live page at (http://127\.0\.0\.1:\d+/)\n', process.stderr.readline())[1]
        reading = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reading.start()
        yield process, url, lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reading is not None:
            reading.join()
        process.stdout.close()
        process.stderr.close()


def interrupt_the_page(process, url, lines):
    """Wait until the experiment says that its page stays; then press Ctrl-C and return the exit status."""
    deadline = time.monotonic() + 20
    while f'the live page stays at {url} until Ctrl-C\n' not in lines:
        assert time.monotonic() < deadline, lines
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=20)


def children_of(process, count):
    deadline = time.monotonic() + 20
    while len(children := psutil.Process(process.pid).children()) != count:
        assert time.monotonic() < deadline, children
        time.sleep(0.02)
    return children


def test_the_page_of_an_experiment_ends_with_its_result():
    with experiment('--connections', '50', '--rate', '200', '--delay', '1') as (process, url, lines):
        with urllib.request.urlopen(url + 'events', timeout=30) as events:
            *_, last, end = events.read().decode().strip().split('\n\n')
        assert end == (
            'event: end\ndata: "The experiment has ended: 50 answered, 0 errors. '
            'This page stays until Ctrl-C in the terminal"'
        )
        sample = json.loads(last.partition('data: ')[2])
        assert (sample['totals']['accepts'], sample['totals']['requests'], sample['totals']['incoming']) == (50, 50, 0)
        assert [name for name, *_ in sample['workers']] == ['server 1']
        assert json.loads(process.stdout.readline())['answered'] == 50
        assert interrupt_the_page(process, url, lines) == 0


def test_the_page_of_an_experiment_stays_until_ctrl_c_and_shows_the_whole_experiment():
    with experiment('--connections', '50', '--rate', '200', '--delay', '2') as (process, url, lines):
        assert json.loads(process.stdout.readline())['answered'] == 50
        children_of(process, 0)  # the servers and loads end with the experiment
        for _ in range(2):
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.status == 200
            with urllib.request.urlopen(url + 'events', timeout=30) as events:
                text = events.read().decode().strip()
            hello, last, end = [block for block in text.split('\n\n') if 'data: ' in block]
            fields = json.loads(hello.partition('data: ')[2])
            opened = [row[fields['fields'].index('incoming')] for row in fields['rows']]
            assert max(opened) == 50 and opened[-1] == 0
            assert json.loads(last.partition('data: ')[2])['totals']['requests'] == 50
            assert end.endswith('This page stays until Ctrl-C in the terminal"')
        assert process.poll() is None
        assert interrupt_the_page(process, url, lines) == 0


def test_a_failed_experiment_also_keeps_its_page():
    with experiment('--connections', '50', '--rate', '200', '--delay', '60') as (process, url, lines):
        children_of(process, 2)[0].kill()
        with urllib.request.urlopen(url + 'events', timeout=30) as events:
            assert b'ended early; see its output above' in events.read()
        assert interrupt_the_page(process, url, lines) == 1


def test_serve_also_has_the_page_and_notifies_viewers_at_its_end():
    command = [sys.executable, '-m', 'reactor.demo', 'serve', '--port', '0', '--dashboard', '0', '--no-stats',
               '--seconds', '0.5']  # fmt: skip
    with subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE) as process:
        url = next(line for line in process.stdout if line.startswith('live page at ')).split()[-1]
        with urllib.request.urlopen(url + 'events', timeout=30) as events:
            assert events.read().endswith(b'event: end\ndata: "The program has ended"\n\n')
        assert process.stdout.read() == 'TCP server exited.\n'


@pytest.mark.parametrize('command', [[], ['serve', '--port', '0']], ids=['experiment', 'serve'])
def test_a_port_in_use_is_reported_in_one_helpful_line(command):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, '-m', 'reactor.demo', *command, '--dashboard', port], cwd=CHECKOUT,
                              capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and port in done.stderr and '--dashboard 0 picks' in done.stderr


def test_the_example_counts_requests_and_names_the_callback_that_blocked_the_loop():
    command = [sys.executable, '-X', 'dev', 'examples/live_page.py', '--port', '0', '--page', '0']
    with subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        url = re.fullmatch(r'look at (http://\S+)\n', process.stdout.readline())[1]
        port = int(process.stdout.readline().rpartition(':')[2])
        with socket.create_connection(('127.0.0.1', port), timeout=20) as sock:
            with urllib.request.urlopen(url + 'events', timeout=20) as events:
                sock.sendall(b'quick\nslow\n')
                # On a busy machine, the start of the program can also be reported as slow.
                named = re.compile(r"'__main__\.Server\.slow:\d+'")
                sample = next(
                    sample for sample in map(sample_in, events) if sample and named.search(str(sample['slow']))
                )
            assert sock.makefile('rb').readline() == b'quick\n'
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=20)
    assert sample['totals']['requests'] == 2 and sample['counted'] == 'requests'
    assert (process.returncode, printed) == (0, 'bye\n') and errors.count('slow callback') == len(errors.splitlines())


def sample_in(line):
    return json.loads(line[6:]) if line.startswith(b'data: {"row"') else None


SAMPLE_IN_HEAP = 500  # bytes of one sample in the history


def number(text):
    return float(re.sub('[^0-9.]', '', text) or 'nan')


def shown(window, name):
    return window.run('return document.getElementById(arguments[0]).textContent', name)


@pytest.fixture(scope='module')
def window():
    if browser.MISSING is not None:
        pytest.skip(f'NOT TESTED: {browser.MISSING}')
    with browser.Browser('--js-flags=--jitless') as window:  # the heap would include the code that a JIT compiles
        yield window


@pytest.mark.slow
def test_a_browser_shows_a_running_experiment_of_5000_connections(request, window):
    seconds = request.config.getoption('--live-seconds')
    # The rate is low enough for the browser to show how the connections are opened.
    options = ('--connections', '5000', '--rate', '500', '--delay', str(seconds + 60))
    with experiment(*options) as (process, url, lines):
        window.show(1200, 1000)
        window.open(url)
        opened = time.monotonic()
        seen = set()
        while 5000 not in seen:
            seen.add(number(shown(window, 'h-open')))
            assert time.monotonic() < opened + 40, (seen, lines)
        assert any(0 < count < 5000 for count in seen), 'the numbers did not change'
        window.run("document.querySelector('details').open = true")
        assert_agrees_with_stats(window, process, lines)
        assert_usable(window)
        assert_does_not_grow(window, opened, seconds)
        process.send_signal(signal.SIGINT)
        window.until("document.getElementById('link').textContent === 'ended'")
        assert shown(window, 'verdict') == 'The experiment has ended: interrupted'
        assert number(shown(window, 'h-open')) == 5000
        assert window.log() == []


def assert_agrees_with_stats(window, process, lines):
    """In a steady state, the page must agree with the experiment's output and with the kernel's data on its server."""
    rows = '[...document.querySelectorAll("#values tbody tr")].map(row => [...row.cells].map(cell => cell.textContent))'
    figures = dict(window.until(f'{rows}.length && {rows}'))
    assert number(figures['incoming']) == pytest.approx(5000, rel=0.02)
    assert number(figures['accepts']) == pytest.approx(5000, rel=0.02)
    assert 0 <= number(figures['Utilisation, by phase of the turn']) < 100
    end = time.monotonic() + 10
    while not any('open 5,000 of 5,000' in line for line in lines):  # this line is printed once a second
        assert time.monotonic() < end, lines
        time.sleep(0.05)
    first, _load = sorted(psutil.Process(process.pid).children(), key=lambda child: child.create_time())
    memory = window.run('return [...document.querySelectorAll(".value")].at(-1).textContent')
    assert number(memory) * 1e6 == pytest.approx(first.memory_info().rss, rel=0.02)


def assert_does_not_grow(window, opened, seconds):
    """The page's memory must not grow.

    Memory is first measured when the page's code has run and, in a long run, its history is full. In a shorter run,
    the samples that are still added to the history are subtracted.
    """

    def look(after):
        while time.monotonic() < opened + after:
            time.sleep(0.2)
        age = time.monotonic() - opened
        nodes, heap = window.live_heap()
        print(f'{age:.0f} s: {nodes} DOM nodes, {heap:,} bytes of script heap')
        return nodes, heap, min(age, HISTORY)

    before = look(HISTORY + 10 if seconds > HISTORY + 10 else 15 if seconds >= 60 else 0)
    after = look(seconds)
    assert after[0] <= before[0]
    assert after[1] <= before[1] * 1.02 + SAMPLE_IN_HEAP * (after[2] - before[2])


TAB, LEFT, ESCAPE = '\ue004', '\ue012', '\ue00c'


def assert_usable(window):
    """The page must work with only the keyboard, on a phone, in dark mode and with reduced motion."""
    order, focused = [], 'document.activeElement'
    for _ in range(10):
        window.press(TAB)
        style = f'getComputedStyle({focused})'
        name, outline, width = window.run(
            f'return [{focused}.id || {focused}.className || {focused}.tagName, {style}.outlineStyle, '
            f'{style}.outlineWidth]'
        )
        order.append(name)
        assert outline == 'solid' and width == '3px', name
    assert order == ['skip', 'pause', 'theme', *['plot'] * 6, 'SUMMARY']
    window.run("document.querySelector('.plot').focus()")
    window.press(LEFT)
    assert re.fullmatch(
        r'as of \d+ s ago', window.until("(document.getElementById('link').textContent.match(/as of .*/) || [])[0]")
    )
    window.press(ESCAPE)
    window.press('p')
    assert shown(window, 'link') == 'paused'
    assert window.run("return document.getElementById('pause').getAttribute('aria-pressed')") == 'true'
    window.press('p')
    assert shown(window, 'link') == 'live'
    labels = window.run(
        "return [...document.querySelectorAll('[role=img]')].map(each => each.getAttribute('aria-label'))"
    )
    assert len(labels) == 7 and all(re.search(r'\d', label) for label in labels), labels
    for scheme in ('light', 'dark'):
        window.show(375, 800, scheme, motion='reduce')
        assert window.run('return document.documentElement.scrollWidth') == 375
        assert window.run("return getComputedStyle(document.querySelector('.turn i')).transitionDuration") == '0s'
        assert min(window.run(CONTRASTS)) >= 4.5, scheme
        assert len(window.picture()) > 20_000
    light = window.run('return getComputedStyle(document.body).color')
    window.press('t')
    assert window.run('return getComputedStyle(document.body).color') != light
    window.press('t')
    window.show(1200, 1000)


# A script that computes the contrast between each piece of text and its background, as defined by WCAG 2.2.
CONTRASTS = r"""
const part = value => value <= 0.04045 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = colour => {
  const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const behind = node => {
  const colour = getComputedStyle(node).backgroundColor;
  return /, 0\)$/.test(colour) ? behind(node.parentNode) : colour;
};
const texts = 'h1 b, .state, #link, button, .legend li, .note, .top, .axis, dt, dd, summary, footer p';
return [...document.querySelectorAll(texts)].map(node => {
  const both = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => a - b);
  return (both[1] + 0.05) / (both[0] + 0.05);
});
"""


@contextmanager
def page_in_a_thread(read, record=False):
    """Run a live page with this source, and perhaps a recorder, in a thread; yield its reactor and the page."""
    ready = threading.Event()
    found = []

    def run():
        with Reactor() as r:
            page = LivePage(r, '127.0.0.1', 0, read, recorder=FlightRecorder(r) if record else None)
            found.extend([r, page])
            r.notifier(int)
            ready.set()
            r.run()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    try:
        yield found
    finally:
        found[0].call_soon_threadsafe(found[0].stop)
        thread.join()


@pytest.mark.slow
def test_a_browser_shows_hostile_names_as_text_and_a_bounded_number_of_rows(window):
    with Reactor() as r:
        figures = {**source(r)()['0'], 'slow': [[HOSTILE.replace('\ud800', '') + 'x' * 500, 1, 0.5]]}
    names = [f'{HOSTILE} {n}' for n in range(70)]
    with page_in_a_thread(lambda: dict.fromkeys(names, figures)) as (r, page):
        window.open(page.url)
        window.until("document.querySelectorAll('#workers tbody tr').length")
        assert window.run('return [document.images.length, document.title]') == [0, 'reactor, live']
        assert window.run("return document.querySelectorAll('#workers tbody tr').length") == 64
        assert window.run('return document.body.innerText.includes(arguments[0])', HOSTILE.splitlines()[0])
        window.show(375, 800)
        assert window.run('return document.documentElement.scrollWidth') == 375
        blocked = window.run("""
            const script = document.createElement('script');
            script.textContent = 'document.title = 2';
            document.body.append(script);
            document.body.setAttribute('onclick', 'document.title = 3');
            document.body.click();
            return document.title
        """)
        assert blocked == 'reactor, live'
        assert all('Content Security Policy' in line['message'] for line in window.log())


@pytest.mark.slow
def test_a_browser_reconnects_after_a_lost_connection_and_reloads_after_the_end(window):
    with Reactor() as r:
        counters = source(r)()
    with page_in_a_thread(lambda: counters) as (r, page):
        window.open(page.url)
        window.until("document.getElementById('link').textContent === 'live'")
        r.call_soon_threadsafe(lambda: [handle.abort() for handle in r.handles() if isinstance(handle, Stream)])
        window.until("document.getElementById('link').textContent.startsWith('reconnecting')")
        window.until("document.getElementById('link').textContent === 'live'")
        r.call_soon_threadsafe(page.end, 'over')
        window.until("document.getElementById('verdict').textContent === 'over'")
        window.run("document.getElementById('pause').click()")
        window.until("document.readyState === 'complete' && document.getElementById('link').textContent === 'ended'")
    assert not [line for line in window.log() if line['source'] != 'network']


@pytest.mark.slow
@pytest.mark.parametrize('width', [1280, 390])
def test_a_click_in_a_browser_downloads_the_trace_of_a_page_with_a_recorder(window, tmp_path, width):
    with Reactor() as r:
        counters = source(r)()
    visible = "document.getElementById('trace').checkVisibility()"
    with page_in_a_thread(lambda: counters) as (r, page):
        window.open(page.url)
        window.until("document.getElementById('about').textContent")
        assert not window.run(f'return {visible}')
    window.devtools('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    window.show(width, 800)
    with page_in_a_thread(lambda: counters, record=True) as (r, page):
        r.call_soon_threadsafe(time.sleep, 0.01)
        window.open(page.url)
        window.until(visible)
        assert window.run('return document.documentElement.scrollWidth') == width
        window.run("document.querySelector('#trace a').click()")
        deadline = time.monotonic() + 20
        while not (found := list(tmp_path.glob('trace-*.json'))):
            assert time.monotonic() < deadline, list(tmp_path.iterdir())
            time.sleep(0.05)
        assert 'time.sleep' in {event['name'] for event in json.loads(found[0].read_text())['traceEvents']}
        r.call_soon_threadsafe(page.end, 'over')
        window.until(f'!{visible}')


@pytest.mark.slow
def test_the_page_is_served_from_a_zip_file(tmp_path):
    archive = tmp_path / 'program.pyz'
    program = """
import sys, threading, urllib.request
import reactor
from reactor.observe.live import serve_page

def ask(url):
    print(len(urllib.request.urlopen(url, timeout=20).read()), reactor.__file__)
    r.call_soon_threadsafe(server.close)

with reactor.Reactor() as r:
    server = serve_page(r)
    threading.Thread(target=ask, args=(f'http://127.0.0.1:{server.address[1]}/',), daemon=True).start()
    server.ref()
    r.call_later(20, server.close).unref()
    r.run()
"""
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('__main__.py', program)
        root = Path(reactor.__file__).parent
        for path in root.rglob('*'):
            if path.suffix in ('.py', '.html'):
                file.write(path, Path(root.name) / path.relative_to(root))
    done = subprocess.run(
        [sys.executable, '-I', str(archive)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert str(archive) in done.stdout, done.stderr
    assert int(done.stdout.split()[0]) == len(Path(PAGE).read_bytes()) + 2 * (32 - len('NONCE')), done.stderr
