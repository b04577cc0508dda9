"""Watched paths: changes are reported in the loop, floods are bounded, and the threads end with their handle."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import deque

import pytest

from reactor import HandleClosed, Reactor, ReactorError, WatchedPath
from reactor.system import paths
from reactor.system.paths import QUEUE_LIMIT, Changes
from tests.helpers.support import idle, in_thread, run_until, turns

pytest.importorskip('watchdog', reason="watch_path is not tested: the extra 'paths' is not installed")


@pytest.fixture(autouse=True)
def no_thread_left(nothing_left):
    """Wait for the library's threads: they end soon after the handle is closed, but `close` does not wait."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


class Reports(list):
    """The reported changes, as (path, change)."""

    def __call__(self, handle, path, change):
        self.append((path, change))


@pytest.mark.scenario(142)
def test_a_file_is_reported_when_it_is_changed_deleted_and_created_again(r, tmp_path):
    path, reports = tmp_path / 'file', Reports()
    path.write_text('a')
    handle = r.watch_path(path, reports)
    name = str(path)
    path.write_text('b')
    run_until(r, lambda: reports == [(name, 'changed')] or (name, 'changed') in reports)
    reports.clear()
    path.unlink()
    run_until(r, lambda: (name, 'deleted') in reports)
    path.write_text('c')
    run_until(r, lambda: (name, 'created') in reports)
    assert not handle.closed
    handle.close()


def test_a_file_that_is_replaced_is_reported_as_created(r, tmp_path):
    path, new, reports = tmp_path / 'file', tmp_path / 'new', Reports()
    path.write_text('a')
    new.write_text('b')
    handle = r.watch_path(str(path), reports)
    new.rename(path)
    run_until(r, lambda: reports)
    assert reports == [(str(path), 'created')]
    handle.close()


def test_the_arguments_are_passed_on(r, tmp_path):
    path, seen = tmp_path / 'file', []
    path.write_text('a')
    handle = r.watch_path(path, lambda *what: seen.append(what), 'first', 2)
    path.write_text('b')
    run_until(r, lambda: seen)
    assert seen[0] == (handle, str(path), 'changed', 'first', 2)
    handle.close()
    assert handle.args == ()


def test_the_neighbours_of_a_file_are_not_reported(r, tmp_path):
    path, reports = tmp_path / 'file', Reports()
    path.write_text('a')
    handle = r.watch_path(path, reports)
    (tmp_path / 'file2').write_text('x')
    (tmp_path / 'file2').unlink()
    path.write_text('b')
    run_until(r, lambda: reports)
    assert set(reports) == {(str(path), 'changed')}
    handle.close()


def test_a_directory_reports_changes_of_its_own_entries(r, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'watched').mkdir()
    reports = Reports()
    handle = r.watch_path('watched', reports)
    one = tmp_path / 'watched' / 'one'
    one.write_text('1')
    run_until(r, lambda: (os.path.join('watched', 'one'), 'created') in reports)
    one.rename(tmp_path / 'watched' / 'two')
    run_until(r, lambda: (os.path.join('watched', 'two'), 'created') in reports)
    assert (os.path.join('watched', 'one'), 'deleted') in reports
    reports.clear()
    (tmp_path / 'watched' / 'two').unlink()
    run_until(r, lambda: (os.path.join('watched', 'two'), 'deleted') in reports)
    (tmp_path / 'elsewhere').write_text('x')
    turns(r, 3)
    assert all(path.startswith('watched') for path, _ in reports)
    handle.close()


def test_reading_a_file_is_not_reported_as_a_change(r, tmp_path):
    path, reports = tmp_path / 'file', Reports()
    path.write_text('a')
    handle = r.watch_path(tmp_path, reports)
    path.read_text()
    os.listdir(tmp_path)
    (tmp_path / 'last').write_text('')
    run_until(r, lambda: reports)
    assert {name for name, _ in reports} == {str(tmp_path / 'last')}
    handle.close()


@pytest.mark.scenario(142)
def test_a_removed_directory_is_reported_and_ends_the_watch(r, tmp_path):
    folder, reports = tmp_path / 'folder', Reports()
    folder.mkdir()
    handle = r.watch_path(folder, reports)
    folder.rmdir()
    run_until(r, lambda: handle.closed)
    assert reports == [(str(folder), 'deleted')]
    assert idle(r)
    assert r.run()


@pytest.mark.scenario(142)
def test_a_file_removed_with_its_directory_is_reported_and_ends_the_watch(r, tmp_path):
    folder, reports = tmp_path / 'folder', Reports()
    folder.mkdir()
    (folder / 'file').write_text('a')
    handle = r.watch_path(folder / 'file', reports)
    shutil.rmtree(folder)
    run_until(r, lambda: handle.closed)
    assert (str(folder / 'file'), 'deleted') in reports
    assert {change for _, change in reports} == {'deleted'}


def test_watching_a_link_to_a_directory_watches_the_directory(r, tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    reports = Reports()
    handle = r.watch_path(tmp_path / 'link', reports)
    (tmp_path / 'real' / 'file').write_text('')
    run_until(r, lambda: reports)
    assert reports[0] == (str(tmp_path / 'link' / 'file'), 'created')
    handle.close()


@pytest.mark.scenario(144)
def test_nothing_is_reported_after_close_and_its_threads_end(r, tmp_path):
    before, reports = threading.active_count(), Reports()
    handle = r.watch_path(tmp_path, reports)
    assert threading.active_count() > before
    (tmp_path / 'file').write_text('')
    handle.close()
    handle.close()
    assert handle.closed
    run_until(r, lambda: threading.active_count() == before)
    (tmp_path / 'file2').write_text('')
    turns(r, 3)
    assert reports == []


def test_a_handle_closed_by_its_own_callback_is_not_called_again(r, tmp_path):
    reports = []

    def once(handle, path, change):
        reports.append(path)
        handle.close()

    handle = r.watch_path(tmp_path, once)
    for name in 'abc':
        (tmp_path / name).write_text('')
    run_until(r, lambda: handle.closed)
    turns(r, 3)
    assert len(reports) == 1


@pytest.mark.scenario(144)
def test_closing_the_reactor_ends_an_active_watch_and_its_threads(tmp_path):
    before, reports = threading.active_count(), Reports()
    with Reactor() as r:
        handle = r.watch_path(tmp_path, reports)
        (tmp_path / 'file').write_text('')
    assert handle.closed and threading.active_count() == before
    with pytest.raises(HandleClosed):
        r.watch_path(tmp_path, reports)


def test_an_exception_in_a_callback_is_logged_and_the_watch_goes_on(r, tmp_path, caplog):
    reports = []

    def fn(handle, path, change):
        reports.append(path)
        raise ValueError('mine')

    handle = r.watch_path(tmp_path, fn)
    (tmp_path / 'one').write_text('')
    run_until(r, lambda: str(tmp_path / 'one') in reports)
    (tmp_path / 'two').write_text('')
    run_until(r, lambda: str(tmp_path / 'two') in reports)
    assert 'mine' in caplog.text
    handle.close()


def test_a_watch_keeps_the_loop_running_unless_unreferenced(r, tmp_path):
    handle = r.watch_path(tmp_path, print)
    assert r.run_once(0) is True
    assert repr(handle) == f'<WatchedPath {str(tmp_path)!r}>' and isinstance(handle, WatchedPath)
    assert any('waits for a change' in line for line in r.why_alive())
    handle.unref()
    assert r.run() is True
    handle.close()
    assert repr(handle).endswith(' closed>')


def test_a_path_that_does_not_exist_raises_at_the_call(r, tmp_path):
    before = threading.active_count()
    with pytest.raises(FileNotFoundError):
        r.watch_path(tmp_path / 'nothing', print)
    assert threading.active_count() == before and not r.handles()


@pytest.mark.parametrize('path, fn', [(3.5, print), ('.', None), ('.', 'print')])
def test_bad_arguments_raise_at_the_call(r, path, fn):
    with pytest.raises(TypeError):
        r.watch_path(path, fn)


def test_another_thread_is_refused(r, tmp_path):
    def check(r):
        with pytest.raises(ReactorError, match='another thread'):
            in_thread(r.watch_path, tmp_path, print)

    r.run(check)


@pytest.mark.scenario(145)
def test_without_the_library_one_error_names_the_extra(r, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'watchdog', None)
    monkeypatch.setitem(sys.modules, 'watchdog.observers', None)
    with pytest.raises(ReactorError, match=r"pip install '\.\[paths\]'") as caught:
        r.watch_path(tmp_path, print)
    assert len(str(caught.value).splitlines()) == 1


def test_a_failure_of_the_library_leaves_no_thread(r, tmp_path, monkeypatch):
    from watchdog.observers.api import BaseObserver

    def fail(self):
        raise OSError('inotify watch limit reached')

    monkeypatch.setattr(BaseObserver, 'on_thread_start', fail)
    before = threading.active_count()
    with pytest.raises(OSError, match='limit'):
        r.watch_path(tmp_path, print)
    assert threading.active_count() == before and not r.handles()


def test_closing_does_not_fail_when_no_more_threads_can_be_started(r, tmp_path, monkeypatch):
    def fail(target, name):
        raise RuntimeError("can't start new thread")

    before = set(threading.enumerate())
    handle = r.watch_path(tmp_path, print)
    monkeypatch.setattr(handle._kernel, 'start_thread', fail)
    handle.close()
    assert handle.closed and not r.handles()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


# -- the queue between the thread and the loop


class Event:
    def __init__(self, event_type, src_path, dest_path=''):
        self.event_type = event_type
        self.src_path = src_path
        self.dest_path = dest_path


@pytest.mark.scenario(143)
@pytest.mark.parametrize(
    'happened, reports',
    [
        ('created modified modified', ['created']),
        ('modified modified', ['changed']),
        ('modified deleted', ['deleted']),
        ('deleted created modified', ['created']),
        ('created deleted', ['deleted']),
        ('opened closed closed_no_write', []),
        ('attrib', ['changed']),
    ],
)
def test_changes_of_a_path_between_two_turns_are_reported_as_one(happened, reports):
    changes = Changes('/folder', None, 'given')
    for what in happened.split():
        changes.dispatch(Event(what, '/folder/file'))
    assert changes.take() == [('given/file', change) for change in reports]
    assert changes.take() == []


@pytest.mark.scenario(143)
def test_a_flood_is_bounded_rings_once_and_is_reported_as_a_change_of_the_directory():
    changes, rings = Changes('/folder', None, 'given'), []
    changes.open(lambda: rings.append(1))
    for number in range(3 * QUEUE_LIMIT):
        changes.dispatch(Event('created', f'/folder/{number}'))
    taken = changes.take()
    assert len(rings) == 1
    assert len(taken) == QUEUE_LIMIT + 1 and taken[-1] == ('given', 'changed')
    changes.dispatch(Event('created', '/folder/file'))
    assert len(rings) == 2 and changes.take() == [('given/file', 'created')]


@pytest.mark.scenario(143)
def test_a_flood_of_real_changes_is_reported_turn_by_turn(r, tmp_path):
    reports = Reports()
    handle = r.watch_path(tmp_path, reports)
    for number in range(1500):
        (tmp_path / str(number)).touch()
    (tmp_path / 'last').touch()
    run_until(r, lambda: (str(tmp_path / 'last'), 'created') in reports or (str(tmp_path), 'changed') in reports)
    handle.close()


def test_changes_before_open_are_reported():
    changes, rings = Changes('/folder', 'file', 'given'), []
    changes.dispatch(Event('modified', '/folder/file'))
    changes.open(lambda: rings.append(1))
    assert rings == [1] and changes.take() == [('given', 'changed')]


@pytest.mark.parametrize('when', ['before', 'after'])
def test_the_end_of_a_directory_is_reported_once_whenever_the_loop_takes_the_changes(when):
    # Regression: when the loop called `take` while the thread was about to queue the last change, the handle used to
    # close before that change was reported.
    changes, taken = Changes('/folder', None, 'given'), []

    def take():
        taken.append((changes.take(), changes.ended))

    class Queue(deque):
        def append(self, change):
            if change == ('given', 'deleted') and when == 'before':
                take()
            super().append(change)
            if change == ('given', 'deleted') and when == 'after':
                take()

    rings = []
    changes._events = Queue()
    changes.open(lambda: rings.append(1))
    changes.dispatch(Event('deleted', '/folder/file'))
    changes.dispatch(Event('deleted', '/folder'))
    assert len(rings) == 2
    take()
    found = [change for changes_of_turn, _ in taken for change in changes_of_turn]
    assert found == [('given/file', 'deleted'), ('given', 'deleted')]
    assert [ended for _, ended in taken] == [False, True]


def test_a_change_that_finds_no_memory_to_ring_is_reported_with_the_next_one():
    # Regression: the MemoryError used to end the library's thread and left a flag set, so no more changes were
    # reported.
    changes, rings = Changes('/folder', None, 'given'), []

    def ring():
        rings.append(1)
        if len(rings) == 1:
            raise MemoryError

    changes.open(ring)
    changes.dispatch(Event('created', '/folder/1'))
    changes.dispatch(Event('created', '/folder/2'))
    assert len(rings) == 2
    assert changes.take() == [('given/1', 'created'), ('given/2', 'created'), ('given', 'changed')]


def test_a_path_through_a_link_and_back_is_resolved_as_the_kernel_does(r, tmp_path):
    # Regression: `..` used to be removed from the text of the path, so the file next to the link was watched.
    (tmp_path / 'real' / 'inner').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'inner')
    reports = Reports()
    for folder in tmp_path, tmp_path / 'real':
        (folder / 'file').write_text('')
    path = f'{tmp_path}/link/../file'
    handle = r.watch_path(path, reports)
    (tmp_path / 'file').write_text('other')
    (tmp_path / 'real' / 'file').unlink()
    run_until(r, lambda: reports)
    assert reports == [(path, 'deleted')]
    handle.close()


@pytest.mark.scenario(144)
def test_a_thread_may_report_to_a_closed_reactor():
    def ring():
        raise HandleClosed('this reactor is closed')

    changes = Changes('/folder', None, 'given')
    changes.open(ring)
    changes.dispatch(Event('created', '/folder/file'))
    changes.close()
    changes.dispatch(Event('created', '/folder/file'))


def test_every_event_type_of_the_library_is_handled_or_ignored():
    from watchdog import events

    known = {value for name, value in vars(events).items() if name.startswith('EVENT_TYPE_')}
    assert known - set(paths.CHANGES) <= {'moved', 'opened', 'closed', 'closed_no_write'}
