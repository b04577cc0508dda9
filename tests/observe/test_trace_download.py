"""The flight recorder's trace as a download of the live page: who gets it, what it costs, and what limits it."""

from __future__ import annotations

import json
import re
import time
import weakref

import pytest

from reactor import Stream, ThreadCall
from reactor.observe import FlightRecorder, Recording, responder
from reactor.observe.downloads import MOST_DOWNLOADS, SLICE
from reactor.observe.live import PAGE, LivePage
from reactor.observe.trace_events import as_json, compressed, packed, pieces, unpacked
from tests.helpers.support import run_until, turns
from tests.observe.test_live_page import Viewer

ENTRIES = 10_000  # the recorder keeps about this many in ten seconds
BIG = 16_000  # entries of a trace that does not fit into the buffers of the kernel
NAME = r'attachment; filename="trace-20\d{6}t\d{6}-\d+\.json"'


def recording(entries=ENTRIES):
    """Return what a recorder keeps of a busy loop."""
    turns = [(0.001 * n, 0.001 * n + 0.0009, 3 * n, 20 * n, *[0.0002 * n] * 4, n, 0.00001 * n, 2000 * n, 2000 * n, 9, 1)
             for n in range(entries)]  # fmt: skip
    calls = [
        ('dispatch', 0.001 * n, 0.001 * n + 0.0001, 'app.on_data:7', f'Stream 127.0.0.1:{n % 500}', 3)
        for n in range(entries)
    ]
    return Recording(turns, calls, 0.0, 0.0, 4711, 'a test')


class Full:
    """Stands for a flight recorder whose memory is full."""

    closed, seconds = False, 10.0

    def __init__(self, fn=recording):
        self.asked = 0
        self.fn = fn

    def recording(self, reason):
        self.asked += 1
        return self.fn()


@pytest.fixture
def serve(r):
    """`serve(recorder)` serves a live page on `r`, and closes its listener and its connections after the test."""
    pages, notifier = [], r.notifier(int)  # which keeps the loop running while a client waits

    def serve(recorder=None):
        pages.append(LivePage(r, '127.0.0.1', 0, recorder=recorder))
        return pages[-1]

    yield serve
    notifier.close()
    for page in pages:
        page.listener.close()
    for handle in r.handles():
        if isinstance(handle, Stream):
            handle.abort()
    run_until(r, lambda: not [one for one in r.handles() if isinstance(one, (Stream, ThreadCall))])
    turns(r, 2)


def has_ended(sock):
    try:
        return sock.recv(1) == b''
    except BlockingIOError:
        return False


def download(r, sockets, page, *headers, **options):
    """Download the trace and return its response, when all of it has arrived."""
    client = Viewer(r, sockets, page, '/trace', *headers, **options)
    run_until(r, lambda: len(client.read() and client.body) == int(client.headers['content-length']))
    return client


def test_the_trace_of_the_recorder_is_downloaded_as_a_file(r, serve, sockets):
    flight = FlightRecorder(r)
    r.call_soon(time.sleep, 0.01)
    r.run_once(0)
    client = download(r, sockets, serve(flight))
    assert client.status == 200 and client.headers['content-type'] == 'application/json'
    assert re.fullmatch(NAME, client.headers['content-disposition'])
    assert client.headers['cache-control'] == 'no-store' and client.headers['x-content-type-options'] == 'nosniff'
    assert client.headers['cross-origin-resource-policy'] == 'same-origin'
    trace = json.loads(client.body)
    assert trace['displayTimeUnit'] == 'ms'
    assert [event['name'] for event in trace['traceEvents'] if event['name'] == 'time.sleep'] == ['time.sleep']
    run_until(r, lambda: has_ended(client.sock))
    flight.close()


def test_the_page_offers_the_trace_only_with_an_open_recorder(r, serve, sockets):
    flight = FlightRecorder(r, seconds=7)
    page = serve(flight)
    assert Viewer(r, sockets, serve()).events[0][2]['trace'] is None
    assert Viewer(r, sockets, page).events[0][2]['trace'] == 7
    flight.close()
    assert Viewer(r, sockets, page).events[0][2]['trace'] is None
    with open(PAGE) as file:
        link = re.search(r'<p id="trace" hidden>.*?</p>', file.read(), re.DOTALL)[0]
    assert '<a class="button" href="trace" download>Download the trace</a>' in link


@pytest.mark.parametrize('closed', [False, True])
def test_without_an_open_recorder_the_address_says_how_to_have_one(r, serve, sockets, closed):
    flight = None
    if closed:
        flight = FlightRecorder(r)
        flight.close()
    client = download(r, sockets, serve(flight))
    assert client.status == 404 and 'content-disposition' not in client.headers
    assert client.body == (
        b'this page has no open flight recorder: pass recorder=observe.FlightRecorder(r) to serve_page\n'
    )


@pytest.mark.parametrize(
    'options, headers, status',
    [
        ({'host': 'attacker.example'}, (), 403),
        ({'method': 'POST'}, (), 405),
        ({}, ('Sec-Fetch-Site: cross-site',), 403),
        ({}, ('Sec-Fetch-Site: same-site',), 403),
    ],
    ids=repr,
)
def test_a_request_that_another_site_has_caused_makes_no_trace(r, serve, sockets, options, headers, status):
    flight = Full()
    client = download(r, sockets, serve(flight), *headers, **options)
    assert client.status == status and b'traceEvents' not in client.body
    assert flight.asked == 0


@pytest.mark.parametrize('site', ['same-origin', 'none'])
def test_a_click_on_the_page_and_a_typed_address_get_the_trace(r, serve, sockets, site):
    flight = FlightRecorder(r)
    assert download(r, sockets, serve(flight), f'Sec-Fetch-Site: {site}').status == 200
    flight.close()


def test_a_head_request_makes_no_trace(r, serve, sockets):
    flight = Full()
    client = Viewer(r, sockets, serve(flight), '/trace', method='HEAD')
    run_until(r, lambda: has_ended(client.sock))
    assert client.status == 200 and re.fullmatch(NAME, client.headers['content-disposition'])
    assert client.body == b'' and flight.asked == 0


def test_the_trace_is_sent_in_slices_one_in_each_turn(r, serve, sockets):
    page = serve(Full())
    client = Viewer(r, sockets, page, '/trace')
    sizes, before = [], r.stats().bytes_out
    while len(client.read() and client.body) < int(client.headers['content-length']):
        r.run_once(0.05)
        sent = r.stats().bytes_out
        sizes.append(sent - before)
        before = sent
    assert json.loads(client.body) == json.loads(as_json(recording()))
    # What the kernel did not accept of one slice may be sent together with the next.
    assert max(sizes) <= 2 * SLICE < len(client.body) / 5


def test_a_client_that_reads_nothing_costs_one_slice_and_is_dropped(r, serve, sockets, monkeypatch):
    monkeypatch.setattr(responder, 'STALLED', 0.3)
    page = serve(Full(lambda: recording(BIG)))
    client = Viewer(r, sockets, page, '/trace')
    (conn,) = [handle for handle in r.handles() if isinstance(handle, Stream)]
    most = []
    run_until(r, lambda: most.append(conn.buffered) or conn.closed)
    assert 0 < max(most) <= SLICE + 65_536  # the high-water mark
    with pytest.raises(ConnectionResetError):
        while client.sock.recv(1 << 20):
            pass


def test_a_limited_number_of_downloads_run_at_once(r, serve, sockets):
    page = serve(Full(lambda: recording(BIG)))
    clients = [Viewer(r, sockets, page, '/trace') for _ in range(MOST_DOWNLOADS)]
    assert {client.status for client in clients} == {200}
    late = Viewer(r, sockets, page, '/trace')
    assert late.status == 503 and b'try again' in late.body
    clients[0].sock.close()
    run_until(r, lambda: len(page._downloads.conns) < MOST_DOWNLOADS)
    assert Viewer(r, sockets, page, '/trace').status == 200


def test_a_client_that_disconnects_before_the_trace_is_made_leaves_nothing(r, serve, sockets):
    page = serve(Full())
    sock = sockets.connect(page.listener.address)
    sock.send(b'GET /trace HTTP/1.0\r\n\r\n')
    run_until(r, lambda: page._downloads.conns)
    seen = weakref.ref(next(iter(page._downloads.conns)))
    sock.close()
    run_until(r, lambda: not [one for one in r.handles() if isinstance(one, ThreadCall)])
    turns(r, 3)
    assert not page._downloads.conns and seen() is None


def test_a_download_is_not_counted_on_the_page_and_does_not_keep_the_loop_running(r, serve, sockets):
    page = serve(Full(lambda: recording(BIG)))
    Viewer(r, sockets, page, '/trace')
    turns(r, 3)
    assert r.stats().incoming == 1 and page._counters()['0']['incoming'] == 0
    for handle in r.handles():
        if type(handle).__name__ == 'Notifier':
            handle.close()
    assert r.run() is True


def test_a_trace_that_cannot_be_made_is_logged_and_ends_only_the_download(r, serve, sockets, caplog):
    def broken():
        return Recording(None, [], 0.0, 0.0, 1, '')

    client = download(r, sockets, serve(Full(broken)))
    assert client.status == 500 and b'see the log' in client.body
    assert len(caplog.records) == 1 and 'trace' in caplog.text


def test_the_trace_is_made_in_pieces_because_the_loop_waits_for_each_of_them():
    made = list(pieces(recording()))
    assert max(map(len, made)) < 40_000  # `json.dumps` takes a quarter of a millisecond for that
    events = json.loads(''.join(made))['traceEvents']
    times = [event['ts'] for event in events if 'ts' in event]
    assert len(times) > 5 * ENTRIES and times == sorted(times)


def test_the_control_socket_and_the_page_send_the_same_trace():
    some = recording(100)
    body, length = compressed(some)
    assert len(unpacked(packed(some))) == length and len(body) < length / 5
