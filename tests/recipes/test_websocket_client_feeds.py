"""100 feeds of websocket-client in one thread, from a server of the package websockets that is killed and restarted."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from reactor import Reactor
from tests.examples.test_service_clients import free_port, service
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.support import run_until, turns_in

websocket = pytest.importorskip('websocket', reason='NOT TESTED: no websocket-client (pip install -e .[recipes])')
pytest.importorskip('websockets', reason='NOT TESTED: no websockets, the server (pip install -e .[recipes])')
ServerProtocol = importlib.import_module('websockets.server').ServerProtocol
recipe = importlib.import_module('examples.recipes.websocket_client_feeds')

FEEDS = 100
SERVER = (Path(__file__).parents[1] / 'reference' / 'websocket_feeds_asyncio.txt').read_text()
# Runs idle feeds with one of the two dispatchers, and says when they are connected.
IDLE = """
import sys, websocket
url, which, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def connected(app):
    global left
    left -= 1
    if not left:
        print('connected', flush=True)

if which == 'rel':
    import rel
    for _ in range(left):
        websocket.WebSocketApp(url, on_open=connected).run_forever(dispatcher=rel, reconnect=1)
    rel.dispatch()
else:
    import reactor
    from examples.recipes.websocket_client_feeds import follow
    reactor.run(lambda r: [follow(r, url, on_open=connected) for _ in range(left)] and None)
"""


class Feed:
    """Counts the numbers that arrived, and those that were missed."""

    def __init__(self, r, url, **options):
        self.received = self.missed = self.ups = self.closes = self.last = 0
        self.texts, self.errors = [], []
        self.app, self.dispatcher = recipe.follow(
            r, url, on_message=self.on_message, on_open=self.on_open, on_close=self.on_close,
            on_error=lambda app, exc: self.errors.append(exc), **options
        )  # fmt: skip

    def on_open(self, app):
        self.ups += 1

    def on_close(self, app, code, reason):
        self.closes += 1

    def on_message(self, app, text):
        if text.startswith('echo'):
            self.texts.append(text)
            return
        self.received += 1
        self.missed += max(0, int(text) - self.last - 1) if self.last else 0
        self.last = int(text)


def server(kind='feed'):
    port = free_port()
    return f'ws://127.0.0.1:{port}', service([sys.executable, '-c', SERVER, str(port), kind], port)


def test_a_hundred_feeds_survive_a_server_that_is_killed_and_each_knows_how_much_it_has_missed(capsys):
    url, running = server()
    process = psutil.Process()
    with running as (start, kill, _), Reactor() as r:
        feeds = [Feed(r, url, reconnect=0.2) for _ in range(FEEDS)]
        run_until(r, lambda: all(feed.received > 10 for feed in feeds))
        descriptors = process.num_fds()
        first = [feed.last - feed.received for feed in feeds]
        for _ in range(2):
            kill()
            assert turns_in(r, 1) < 6 * FEEDS  # each feed connects at most five times a second, and nothing spins
            start()
            ups = [feed.ups for feed in feeds]
            run_until(r, lambda ups=ups: all(feed.ups > up for feed, up in zip(feeds, ups, strict=True)))
            turns_in(r, 0.5)
        assert {feed.ups for feed in feeds} == {3}
        assert not any(feed.errors or feed.closes for feed in feeds)  # the library does not report it with these
        assert process.num_fds() <= descriptors
        for feed, begin in zip(feeds, first, strict=True):
            assert feed.missed > 0 and feed.received + feed.missed == feed.last - begin
        received, missed = sum(feed.received for feed in feeds), sum(feed.missed for feed in feeds)
        with capsys.disabled():
            print(f'\n{FEEDS} feeds, 2 kills: {received} of {received + missed} numbers arrived, {missed} counted')
        for feed in feeds:
            feed.dispatcher.stop(feed.app)
        run_until(r, lambda: all(feed.closes == 1 for feed in feeds))
        assert all(feed.dispatcher.watch is None for feed in feeds)
        assert not r.handles()
        assert len(r.timers) == 0


def test_an_app_that_is_closed_while_it_waits_for_a_server_stays_closed():
    url, running = server()
    with running as (start, kill, _), Reactor() as r:
        feed = Feed(r, url, reconnect=0.2)
        run_until(r, lambda: feed.received)
        kill()
        run_until(r, lambda: feed.dispatcher.timers)
        feed.dispatcher.stop(feed.app)
        start()
        assert r.run()  # nothing is left to wait for
        assert feed.ups == 1


def test_long_messages_are_sent_in_parts_and_in_order_while_others_are_received():
    url, running = server()
    with running as (_, _, processes), Reactor() as r:
        feed, other = Feed(r, url), Feed(r, url)
        run_until(r, lambda: feed.received and other.received)
        texts = [f'{number} ' + 'x' * 900_000 for number in range(10)]
        psutil.Process(processes[-1].pid).suspend()
        for text in texts:
            feed.app.send(text)
        psutil.Process(processes[-1].pid).resume()
        assert feed.dispatcher.unsent  # more than the kernel has buffered
        before = other.received
        run_until(r, lambda: len(feed.texts) == len(texts))
        assert feed.texts == [f'echo {text}' for text in texts]
        assert other.received > before
        assert feed.dispatcher.dropped == 0
        for each in feed, other:
            before = time.monotonic()
            each.app.close()  # waits for the close frame of the server; with rel, this takes three seconds
            assert time.monotonic() - before < 1
        run_until(r, lambda: feed.closes and other.closes)


def test_bytes_that_were_not_sent_when_the_server_died_are_counted():
    url, running = server()
    with running as (_, kill, processes), Reactor() as r:
        feed = Feed(r, url, reconnect=0.2)
        run_until(r, lambda: feed.received)
        psutil.Process(processes[-1].pid).suspend()
        for _ in range(10):
            feed.app.send('x' * 1_000_000)
        turns_in(r, 0.2)
        unsent = len(feed.dispatcher.unsent)
        assert unsent > 100_000
        kill()
        run_until(r, lambda: feed.dispatcher.timers)
        assert feed.dispatcher.dropped + len(feed.dispatcher.unsent) >= unsent
        feed.dispatcher.stop(feed.app)


def send_half_a_frame_and_later_the_rest(listener):
    protocol = ServerProtocol()
    with listener.accept()[0] as sock:
        protocol.receive_data(sock.recv(65536))
        protocol.send_response(protocol.accept(protocol.events_received()[0]))
        protocol.send_text(b'echo both halves')
        *response, frame = protocol.data_to_send()
        sock.sendall(b''.join(response) + frame[:7])
        time.sleep(0.5)
        sock.sendall(frame[7:])
        sock.recv(100)  # a close frame


def send_three_frames_in_one_record(listener, context):
    protocol = ServerProtocol()
    with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
        protocol.receive_data(sock.recv(65536))
        protocol.send_response(protocol.accept(protocol.events_received()[0]))
        sock.sendall(b''.join(protocol.data_to_send()))
        for number in range(3):
            protocol.send_text(b'echo %d' % number)
        sock.sendall(b''.join(protocol.data_to_send()))
        sock.recv(100)  # a close frame


def test_all_frames_of_a_tls_record_are_received_although_the_selector_reports_it_once(certificates):  # noqa: F811
    with socket.create_server(('127.0.0.1', 0)) as listener, Reactor() as r:
        thread = threading.Thread(target=send_three_frames_in_one_record, args=[listener, certificates.server()])
        thread.start()
        texts, closes = [], []
        app = websocket.WebSocketApp(f'wss://localhost:{listener.getsockname()[1]}')
        app.on_message, app.on_close = lambda app, text: texts.append(text), lambda *args: closes.append(args)
        dispatcher = recipe.Dispatcher(r)
        r.call_soon(partial(app.run_forever, dispatcher=dispatcher, sslopt={'ca_certs': str(certificates.authority)}))
        run_until(r, lambda: len(texts) == 3)
        dispatcher.stop(app)
        run_until(r, lambda: closes)
        thread.join()


def test_half_a_frame_does_not_block_the_loop():
    with socket.create_server(('127.0.0.1', 0)) as listener, Reactor() as r:
        # The client connects with a blocking socket, so its server must be in another thread.
        thread = threading.Thread(target=send_half_a_frame_and_later_the_rest, args=[listener])
        thread.start()
        feed = Feed(r, f'ws://127.0.0.1:{listener.getsockname()[1]}')
        run_until(r, lambda: feed.ups)
        longest, before = 0, time.monotonic()
        while not feed.texts:
            r.run_once(0.02)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        assert longest < 0.3
        assert feed.texts == ['echo both halves']
        feed.dispatcher.stop(feed.app)
        run_until(r, lambda: feed.closes)
        thread.join()


def test_a_server_that_does_not_answer_pings_is_left_and_pings_are_sent_by_a_thread():
    url, running = server('idle')
    with running as (_, _, processes), Reactor() as r:
        app, dispatcher = websocket.WebSocketApp(url), recipe.Dispatcher(r)
        opened, pongs = [], []
        app.on_open, app.on_pong = lambda app: opened.append(app.sock), lambda app, data: pongs.append(data)
        options = {'ping_interval': 0.4, 'ping_timeout': 0.3, 'reconnect': 0.1, 'dispatcher': dispatcher}
        r.call_soon(partial(app.run_forever, **options))
        run_until(r, lambda: len(pongs) == 2)
        assert len(opened) == 1
        websocket.setdefaulttimeout(0.3)  # the stopped server will accept the next connection, and not answer
        try:
            psutil.Process(processes[-1].pid).suspend()
            first = opened[0]
            run_until(r, lambda: app.sock is not first)
            psutil.Process(processes[-1].pid).resume()
            run_until(r, lambda: len(opened) == 2 and len(pongs) > 3)
        finally:
            websocket.setdefaulttimeout(None)
        dispatcher.stop(app)
        run_until(r, lambda: dispatcher.watch is None)
        assert turns_in(r, 0.1) < 10


def wakeups(url, which, seconds):
    """Return the voluntary context switches and the CPU seconds of idle feeds, both per second."""
    with subprocess.Popen([sys.executable, '-c', IDLE, url, which, str(FEEDS)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b'connected\n'
            time.sleep(0.5)
            process = psutil.Process(child.pid)
            before, cpu = process.num_ctx_switches().voluntary, sum(process.cpu_times()[:2])
            time.sleep(seconds)
            switches = process.num_ctx_switches().voluntary - before
            return switches / seconds, (sum(process.cpu_times()[:2]) - cpu) / seconds
        finally:
            child.kill()


@pytest.mark.slow
def test_idle_feeds_do_not_wake_up_as_they_do_with_rel(capsys):
    pytest.importorskip('rel', reason='NOT TESTED: no rel, to compare with (pip install -e .[recipes])')
    url, running = server('idle')
    with running:
        figures = {which: wakeups(url, which, 4) for which in ('reactor', 'rel')}
    with capsys.disabled():
        print(f'\n{FEEDS} idle feeds, (wake-ups, CPU seconds) per second: {json.dumps(figures)}')
    assert figures['reactor'][0] < 10
    assert figures['rel'][0] > 20 * figures['reactor'][0]
