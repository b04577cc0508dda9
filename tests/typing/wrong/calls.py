"""Calls, timers, and the reactor itself: each marked line has a mistake, and no other line has one."""

from __future__ import annotations

import signal

import reactor
from reactor import Descriptor, Reactor, Stream


def nothing() -> None:
    pass


def two(number: int, text: str) -> int:
    return number


def on_ready(handle: Descriptor, event: int, text: str) -> None:
    pass


def on_draining(seconds: float, text: str) -> None:
    pass


def on_done(result: int | None, error: BaseException | None) -> None:
    pass


def on_text(result: str | None, error: BaseException | None) -> None:
    pass


def on_addresses(addresses: list[str] | None, error: Exception | None) -> None:
    pass


def on_change(path: str, change: str) -> None:
    pass


def take(stream: Stream) -> None:
    pass


def starting() -> None:
    reactor.run(nothing)  # wrong: callback
    reactor.run(take)  # wrong: callback
    reactor.run(lambda r: r.listen())  # wrong: name
    reactor.run(lambda r: None, slow_calback=1)  # wrong: shared option
    reactor.run(lambda r: None, slow_callback='1')  # wrong: value
    Reactor(slow_calback=1)  # wrong: option
    Reactor(slow_callback='1')  # wrong: value
    Reactor(min_wait='1')  # wrong: value
    Reactor(selector='epoll')  # wrong: value
    Reactor(kernel='linux')  # wrong: value
    Reactor(catch_errors=nothing)  # wrong: callback
    Reactor(debug='yes')  # wrong: value
    Reactor(threads='4')  # wrong: value
    reactor.run(lambda r: None, threads=4.5)  # wrong: value


def running(r: Reactor) -> None:
    r.run(nothing)  # wrong: callback
    r.run(take)  # wrong: callback
    r.run_once('1')  # wrong: value
    r.stop(1)  # wrong: call
    r.close(1)  # wrong: call
    r.now()  # wrong: call
    r.timeout(1)  # wrong: call
    r.fileno(1)  # wrong: call
    r.stats().loop_counts  # wrong: name
    r.handles().write  # wrong: name
    r.why_alive('10')  # wrong: value
    r.drain()  # wrong: call
    r.drain('5')  # wrong: value
    r.drain(5, lame_duk=1)  # wrong: option
    r.draining = True  # wrong: read-only
    r.add_exit_callback(two)  # wrong: args
    r.add_exit_callback(5)  # wrong: callback
    r.add_drain_callback(nothing)  # wrong: callback
    r.add_drain_callback(on_draining)  # wrong: args
    r.add_drain_callback(5)  # wrong: callback
    r.add_drain_callback()  # wrong: call
    r.lisen_tcp('localhost', 80)  # wrong: name


def calling(r: Reactor) -> None:
    r.call_soon()  # wrong: call
    r.call_soon(nothing())  # wrong: callback
    r.call_soon(nothing, 1)  # wrong: args
    r.call_soon(two, 1)  # wrong: args
    r.call_soon(two, 'x', 1)  # wrong: args
    r.call_soon_threadsafe(5)  # wrong: callback
    r.call_soon_threadsafe(two, 1)  # wrong: args
    r.call_later('1', nothing)  # wrong: value
    r.call_later(nothing, 1)  # wrong: value
    r.call_later(1, two, 1)  # wrong: args
    r.call_later(1, nothing, delay=1)  # wrong: option
    r.call_at('noon', nothing)  # wrong: value
    r.call_at(1, nothing, 1)  # wrong: args
    r.call_every(None, nothing)  # wrong: value
    r.call_every(1, two)  # wrong: args
    timer = r.call_later(1, nothing)
    timer.cancel(1)  # wrong: call
    timer.reset('1')  # wrong: value
    timer.deadline.x  # wrong: name
    timer.close()  # wrong: name
    timer.ref(1)  # wrong: call
    timer.unref(1)  # wrong: call


def waiting(r: Reactor) -> None:
    r.add_signal_handler('SIGTERM', nothing)  # wrong: value
    r.add_signal_handler(signal.SIGTERM, two)  # wrong: args
    r.remove_signal_handler('SIGTERM')  # wrong: value
    r.clear_signal_handlers(1)  # wrong: call
    r.idle(two)  # wrong: args
    r.idle(5)  # wrong: callback
    r.notifier(two, 1)  # wrong: args
    r.notifier(nothing, one=True)  # wrong: option
    r.notifier(nothing).trigger(1)  # wrong: call
    r.notifier(nothing).fire()  # wrong: name
    r.watch_fd('0', 1, on_ready, 'x')  # wrong: value
    r.watch_fd(0, 'r', on_ready, 'x')  # wrong: value
    r.watch_fd(0, 1, nothing)  # wrong: callback
    r.watch_fd(0, 1, on_ready)  # wrong: args
    r.watch_fd(0, 1, on_ready, 5)  # wrong: args
    r.watch_fd(0, 1, lambda handle, event: handle.set_event(0))  # wrong: name
    r.watch_fd(0, 1, lambda handle, event: handle.set_events('r'))  # wrong: value
    r.run_in_thread(two, 1)  # wrong: args
    r.run_in_thread(two, 1, 'x', on_done=nothing)  # wrong: callback
    r.run_in_thread(two, 1, 'x', on_done=on_text)  # wrong: callback
    r.run_in_thread(two, 1, 'x', on_don=on_done)  # wrong: option
    r.resolve('localhost')  # wrong: call
    r.resolve('localhost', nothing)  # wrong: callback
    r.resolve('localhost', on_text)  # wrong: callback
    r.resolve('localhost', on_addresses, timout=1)  # wrong: option
    r.resolve_address(5, on_text)  # wrong: value
    r.resolve_address('::1', on_addresses)  # wrong: callback
    r.resolve_address('::1', on_text, family=2)  # wrong: option
    r.watch_path(5, lambda handle, path, change: None)  # wrong: value
    r.watch_path('x', on_change)  # wrong: callback
    r.watch_path('x', lambda handle, path, change: handle.closee())  # wrong: name
