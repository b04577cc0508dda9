"""Watched paths: what changed is told in the loop, floods are bounded, the threads end with the handle."""

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

pytest.importorskip('watchdog', reason="the extra 'paths' is not installed: nothing of watch_path is tested")


@pytest.fixture(autouse=True)
def no_thread_left(nothing_left):
    """The library's threads end with the handle, without being waited for: give them their time."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


class Told(list):
    """What was told, as (path, change)."""

    def __call__(self, handle, path, change):
        self.append((path, change))


@pytest.mark.scenario(142)
def test_a_file_is_told_when_it_changes_goes_and_comes_again(r, tmp_path):
    path, told = tmp_path / 'file', Told()
    path.write_text('a')
    handle = r.watch_path(path, told)
    name = str(path)
    path.write_text('b')
    run_until(r, lambda: told == [(name, 'changed')] or (name, 'changed') in told)
    told.clear()
    path.unlink()
    run_until(r, lambda: (name, 'deleted') in told)
    path.write_text('c')
    run_until(r, lambda: (name, 'created') in told)
    assert not handle.closed
    handle.close()


def test_a_file_that_is_replaced_is_told_as_created(r, tmp_path):
    path, new, told = tmp_path / 'file', tmp_path / 'new', Told()
    path.write_text('a')
    new.write_text('b')
    handle = r.watch_path(str(path), told)
    new.rename(path)
    run_until(r, lambda: told)
    assert told == [(str(path), 'created')]
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


def test_the_neighbours_of_a_file_are_not_told(r, tmp_path):
    path, told = tmp_path / 'file', Told()
    path.write_text('a')
    handle = r.watch_path(path, told)
    (tmp_path / 'file2').write_text('x')
    (tmp_path / 'file2').unlink()
    path.write_text('b')
    run_until(r, lambda: told)
    assert set(told) == {(str(path), 'changed')}
    handle.close()


def test_a_directory_tells_of_what_is_directly_in_it(r, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'watched').mkdir()
    told = Told()
    handle = r.watch_path('watched', told)
    one = tmp_path / 'watched' / 'one'
    one.write_text('1')
    run_until(r, lambda: (os.path.join('watched', 'one'), 'created') in told)
    one.rename(tmp_path / 'watched' / 'two')
    run_until(r, lambda: (os.path.join('watched', 'two'), 'created') in told)
    assert (os.path.join('watched', 'one'), 'deleted') in told
    told.clear()
    (tmp_path / 'watched' / 'two').unlink()
    run_until(r, lambda: (os.path.join('watched', 'two'), 'deleted') in told)
    (tmp_path / 'elsewhere').write_text('x')
    turns(r, 3)
    assert all(path.startswith('watched') for path, _ in told)
    handle.close()


def test_reading_changes_nothing(r, tmp_path):
    path, told = tmp_path / 'file', Told()
    path.write_text('a')
    handle = r.watch_path(tmp_path, told)
    path.read_text()
    os.listdir(tmp_path)
    (tmp_path / 'last').write_text('')
    run_until(r, lambda: told)
    assert {name for name, _ in told} == {str(tmp_path / 'last')}
    handle.close()


@pytest.mark.scenario(142)
def test_a_directory_that_goes_is_told_and_the_watch_has_ended(r, tmp_path):
    folder, told = tmp_path / 'folder', Told()
    folder.mkdir()
    handle = r.watch_path(folder, told)
    folder.rmdir()
    run_until(r, lambda: handle.closed)
    assert told == [(str(folder), 'deleted')]
    assert idle(r)
    assert r.run()


@pytest.mark.scenario(142)
def test_a_file_that_goes_with_its_directory_is_told_and_the_watch_has_ended(r, tmp_path):
    folder, told = tmp_path / 'folder', Told()
    folder.mkdir()
    (folder / 'file').write_text('a')
    handle = r.watch_path(folder / 'file', told)
    shutil.rmtree(folder)
    run_until(r, lambda: handle.closed)
    assert (str(folder / 'file'), 'deleted') in told
    assert {change for _, change in told} == {'deleted'}


def test_a_link_to_a_directory_is_watched_through(r, tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    told = Told()
    handle = r.watch_path(tmp_path / 'link', told)
    (tmp_path / 'real' / 'file').write_text('')
    run_until(r, lambda: told)
    assert told[0] == (str(tmp_path / 'link' / 'file'), 'created')
    handle.close()


@pytest.mark.scenario(144)
def test_nothing_is_told_after_close_and_its_threads_end(r, tmp_path):
    before, told = threading.active_count(), Told()
    handle = r.watch_path(tmp_path, told)
    assert threading.active_count() > before
    (tmp_path / 'file').write_text('')
    handle.close()
    handle.close()
    assert handle.closed
    run_until(r, lambda: threading.active_count() == before)
    (tmp_path / 'file2').write_text('')
    turns(r, 3)
    assert told == []


def test_a_handle_closed_by_its_own_callback_hears_nothing_more(r, tmp_path):
    told = []

    def once(handle, path, change):
        told.append(path)
        handle.close()

    handle = r.watch_path(tmp_path, once)
    for name in 'abc':
        (tmp_path / name).write_text('')
    run_until(r, lambda: handle.closed)
    turns(r, 3)
    assert len(told) == 1


@pytest.mark.scenario(144)
def test_closing_the_reactor_ends_an_active_watch_and_its_threads(tmp_path):
    before, told = threading.active_count(), Told()
    with Reactor() as r:
        handle = r.watch_path(tmp_path, told)
        (tmp_path / 'file').write_text('')
    assert handle.closed and threading.active_count() == before
    with pytest.raises(HandleClosed):
        r.watch_path(tmp_path, told)


def test_an_exception_in_its_callback_is_logged_and_the_watch_goes_on(r, tmp_path, caplog):
    told = []

    def fn(handle, path, change):
        told.append(path)
        raise ValueError('mine')

    handle = r.watch_path(tmp_path, fn)
    (tmp_path / 'one').write_text('')
    run_until(r, lambda: str(tmp_path / 'one') in told)
    (tmp_path / 'two').write_text('')
    run_until(r, lambda: str(tmp_path / 'two') in told)
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


def test_what_is_not_there_raises_at_the_call(r, tmp_path):
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
    with pytest.raises(ReactorError, match=r"pip install 'selectors-reactor\[paths\]'") as caught:
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


def test_closing_does_not_fail_when_the_system_has_no_more_threads(r, tmp_path, monkeypatch):
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
    'happened, told',
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
def test_what_happens_to_a_path_between_two_turns_is_told_as_one(happened, told):
    changes = Changes('/folder', None, 'given')
    for what in happened.split():
        changes.dispatch(Event(what, '/folder/file'))
    assert changes.take() == [('given/file', change) for change in told]
    assert changes.take() == []


@pytest.mark.scenario(143)
def test_a_flood_is_bounded_rings_once_and_is_told_as_a_change_of_the_whole():
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
def test_a_flood_of_real_changes_is_told_turn_by_turn(r, tmp_path):
    told = Told()
    handle = r.watch_path(tmp_path, told)
    for number in range(1500):
        (tmp_path / str(number)).touch()
    (tmp_path / 'last').touch()
    run_until(r, lambda: (str(tmp_path / 'last'), 'created') in told or (str(tmp_path), 'changed') in told)
    handle.close()


def test_changes_of_before_it_was_opened_are_told():
    changes, rings = Changes('/folder', 'file', 'given'), []
    changes.dispatch(Event('modified', '/folder/file'))
    changes.open(lambda: rings.append(1))
    assert rings == [1] and changes.take() == [('given', 'changed')]


@pytest.mark.parametrize('when', ['before', 'after'])
def test_the_end_of_a_directory_is_known_once_it_was_taken_whenever_the_loop_takes(when):
    # The handle closed before the last change was told, when the loop took while the thread was about to queue it.
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


def test_a_change_that_finds_no_memory_to_ring_is_told_with_the_next_one():
    # The library's thread ended with the error, and the flag stayed up: nothing was told any more.
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


def test_a_path_over_a_link_and_back_is_that_of_the_system(r, tmp_path):
    # The file next to the link was watched: `..` was taken off the text.
    (tmp_path / 'real' / 'inner').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'inner')
    told = Told()
    for folder in tmp_path, tmp_path / 'real':
        (folder / 'file').write_text('')
    path = f'{tmp_path}/link/../file'
    handle = r.watch_path(path, told)
    (tmp_path / 'file').write_text('other')
    (tmp_path / 'real' / 'file').unlink()
    run_until(r, lambda: told)
    assert told == [(path, 'deleted')]
    handle.close()


@pytest.mark.scenario(144)
def test_a_thread_that_tells_a_closed_reactor_is_not_hurt():
    def ring():
        raise HandleClosed('this reactor is closed')

    changes = Changes('/folder', None, 'given')
    changes.open(ring)
    changes.dispatch(Event('created', '/folder/file'))
    changes.close()
    changes.dispatch(Event('created', '/folder/file'))


def test_the_names_of_the_library_are_all_known_or_change_nothing():
    from watchdog import events

    known = {value for name, value in vars(events).items() if name.startswith('EVENT_TYPE_')}
    assert known - set(paths.CHANGES) <= {'moved', 'opened', 'closed', 'closed_no_write'}
