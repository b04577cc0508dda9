"""The reactor inside the event loops of Tk (on a virtual display) and of Qt (offscreen).

Each toolkit runs its recipe, and then a program of this file with the host class of the recipe.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.recipes.running import RECIPES, recipe, wait_until

CHECKOUT = RECIPES.parents[1]
TK = """if 1:
    import tkinter
    from tk_host import TkHost

    root = tkinter.Tk()
    later, quit, run = root.after, root.quit, root.mainloop
    make_host = lambda r: TkHost(root, r)

    def dialog(milliseconds):  # what tkinter.messagebox does
        top = tkinter.Toplevel(root)
        root.after(milliseconds, top.destroy)
        root.wait_window(top)
"""
QT = """if 1:
    from PySide6.QtCore import QTimer
    from PySide6.QtWidgets import QApplication, QDialog
    from qt_host import QtHost

    app = QApplication([])
    app.setQuitOnLastWindowClosed(False)  # the dialog is the only window here
    later, quit, run = QTimer.singleShot, app.quit, app.exec
    make_host = QtHost

    def dialog(milliseconds):
        box = QDialog()
        QTimer.singleShot(milliseconds, box.accept)
        box.exec()
"""


def has_tk(python):
    return subprocess.run([python, '-c', 'import tkinter'], capture_output=True).returncode == 0


def start_display():
    """Start Xvfb on a free display, and return its process and the name of the display."""
    command = ['Xvfb', '-displayfd', '1', '-nolisten', 'tcp', '-screen', '0', '640x480x24']
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return server, f':{server.stdout.readline().strip()}'


@pytest.fixture(params=['tk', 'qt'])
def gui(request, monkeypatch):
    """The name of the recipe, the Python that has the toolkit, and the first part of a program with a host."""
    monkeypatch.setenv('PYTHONPATH', f'{CHECKOUT}:{RECIPES}')
    if request.param == 'qt':
        if importlib.util.find_spec('PySide6') is None:
            pytest.skip('NOT TESTED: PySide6 is not installed: pip install PySide6-Essentials')
        monkeypatch.setenv('QT_QPA_PLATFORM', 'offscreen')
        probe = subprocess.run([sys.executable, '-c', 'import PySide6.QtWidgets'], capture_output=True, text=True)
        if probe.returncode:
            why = probe.stderr.strip().splitlines()[-1]
            pytest.skip(f'NOT TESTED: Qt cannot be loaded ({why}): apt-get install libegl1 libxkbcommon0 libdbus-1-3')
        yield 'qt_host.py', sys.executable, QT
        return
    python = next((python for python in (sys.executable, '/usr/bin/python3') if has_tk(python)), None)
    if python is None or shutil.which('Xvfb') is None:
        pytest.skip('NOT TESTED: tkinter or Xvfb is not installed: apt-get install python3-tk xvfb')
    server, display = start_display()
    monkeypatch.setenv('DISPLAY', display)
    try:
        yield 'tk_host.py', python, TK
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@contextmanager
def running(gui):
    name, python, _ = gui
    options = {'python': (python, '-X', 'dev', '-W', 'error'), 'harmless': 'This plugin does not support .*\n'}
    with recipe(name, '--port', '0', **options) as (process, port):
        with socket.create_connection(('127.0.0.1', int(port)), timeout=15) as sock:
            yield process, int(port), sock


def all_wakeups(process, seconds):
    """Count the wake-ups of all threads: Tk has one that waits for descriptors."""

    def switches():
        texts = [path.read_text() for path in Path(f'/proc/{process.pid}/task').glob('*/status')]
        return sum(int(re.search(r'^voluntary_ctxt_switches:\s+(\d+)', text, re.MULTILINE)[1]) for text in texts)

    before = switches()
    time.sleep(seconds)
    return (switches() - before) / seconds


@pytest.mark.slow
def test_how_fast_the_echo_is_and_how_often_an_idle_window_wakes_up(gui, capsys):
    with running(gui) as (process, _, sock):
        took = []
        for _ in range(5000):
            began = time.perf_counter()
            sock.sendall(b'x')
            assert sock.recv(10) == b'x'
            took.append(time.perf_counter() - began)
        took.sort()
        time.sleep(1.1)
        woke = all_wakeups(process, 3)
    with capsys.disabled():
        print(f'\n{gui[0]}: echo p50 {took[2500] * 1e6:.0f} us, p99 {took[4950] * 1e6:.0f} us; idle {woke:.1f}/s')
    assert woke <= 1


def run_program(gui, text):
    """Run a program that begins as above, and return the object that it prints as JSON."""
    _, python, first = gui
    helpers = """
    import json, time, reactor
    result = {}

    def finish():
        host.pause()
        r.close()
        quit()

    r = reactor.Reactor()
    host = make_host(r)
    """
    last = """
    host.start()
    run()
    print(json.dumps(result))
    """
    command = [python, '-X', 'dev', '-W', 'error', '-c', first + helpers + text + last]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_timers_of_both_loops_are_on_time_while_a_server_is_busy(gui, capsys):
    result = run_program(
        gui,
        """
    result.update(gui=0, ours=0, echoes=0)
    begin = time.monotonic()

    def tick():
        result['gui'] += 1
        if time.monotonic() < begin + 2:
            later(10, tick)
        else:
            finish()

    def count():
        result['ours'] += 1

    def send_back(conn, data):
        result['echoes'] += 1
        conn.write(data)

    server = r.listen_tcp('127.0.0.1', 0, send_back)
    for _ in range(20):
        r.connect_tcp('127.0.0.1', server.address[1], send_back, on_connect=lambda conn: conn.write(b'x'))
    r.call_every(0.01, count)
    later(10, tick)
    """,
    )
    with capsys.disabled():
        print(f'\n{gui[0]}, 2 s with 20 busy connections: {result}')
    assert result['echoes'] > 2000
    assert result['gui'] > 80 and result['ours'] > 80, result


def test_a_call_from_the_gui_sets_a_timer_that_is_on_time(gui):
    result = run_program(
        gui,
        """
    def from_gui():
        begin = time.monotonic()
        host.call(r.call_later, 0.2, fired, begin)

    def fired(begin):
        result['late'] = time.monotonic() - begin - 0.2
        later(0, finish)

    r.listen_tcp('127.0.0.1', 0)
    later(300, from_gui)
    """,
    )
    assert 0 <= result['late'] < 0.1


def test_a_dialog_in_a_callback_pauses_the_reactor_and_costs_no_cpu(gui):
    result = run_program(
        gui,
        """
    import socket
    result['ticks_in_dialog'] = -1

    def count():
        result['ticks'] = result.get('ticks', 0) + 1

    def on_data(conn, data):
        before, began = result.get('ticks', 0), time.process_time()
        client.send(b'x')  # the descriptor stays readable
        conn.on_data = last
        dialog(1000)
        result['ticks_in_dialog'] = result.get('ticks', 0) - before
        result['cpu'] = time.process_time() - began

    def last(conn, data):
        result['data_after'] = len(data)
        client.close()
        later(300, finish)

    server = r.listen_tcp('127.0.0.1', 0, on_data)
    client = socket.create_connection(server.address)
    client.send(b'x')
    r.call_every(0.01, count)
    """,
    )
    assert result['ticks_in_dialog'] == 0
    assert result['data_after'] == 1
    assert result['cpu'] < 0.5, result
    assert result['ticks'] > 10


def test_clients_come_and_go_and_a_signal_ends_the_program(gui):
    with running(gui) as (process, port, sock):
        sock.sendall(b'first')
        assert sock.recv(10) == b'first'
        before = len(os.listdir(f'/proc/{process.pid}/fd'))
        others = [socket.create_connection(('127.0.0.1', port), timeout=15) for _ in range(50)]
        for number, other in enumerate(others):
            other.sendall(b'%d' % number)
            assert other.recv(10) == b'%d' % number
            other.close()
        wait_until(lambda: len(os.listdir(f'/proc/{process.pid}/fd')) == before)
        assert not select.select([sock], [], [], 0)[0]
