"""Timers, calls, signals, threads, descriptors, look-ups: everything that takes `fn, *args`."""

from __future__ import annotations

import signal
import sys
from typing import assert_type

import reactor
from reactor import Descriptor, Handle, Idler, LookUp, Notifier, Reactor, SignalHandler, Stats, ThreadCall, Timer


def nothing() -> None:
    pass


def two(number: int, text: str) -> int:
    return number + len(text)


def on_draining(seconds: float, text: str) -> None:
    print(seconds + len(text))


def optional(number: int = 1) -> None:
    print(number)


def on_ready(handle: Descriptor, event: int, text: str) -> None:
    handle.set_events(event | reactor.WRITE)
    print(text)


def on_result(result: int | None, error: BaseException | None) -> None:
    print(result, error)


def on_addresses(addresses: list[str] | None, error: Exception | None) -> None:
    print(addresses, error)


class Mine(Reactor):
    """A class that the user has written."""

    name = 'mine'


def run(r: Mine) -> None:
    print(r.name)


def main(r: Reactor) -> None:
    r.call_soon(nothing)
    r.call_soon(two, 1, 'x')
    r.call_soon(optional)
    r.call_soon(optional, 2)
    r.call_soon(print, 'x', 1, None)
    r.call_soon_threadsafe(two, 1, 'x')
    timer = r.call_later(0.5, two, 1, 'x')
    timer.reset(1)
    timer.cancel()
    assert_type(timer, Timer)
    assert_type(timer.deadline, float | None)
    assert_type(r.call_at(r.now + 1, nothing), Timer)
    assert_type(r.call_every(1, lambda: r.stop()), Timer)
    r.add_exit_callback(two, 1, 'x')
    r.add_drain_callback(on_draining, 'x')
    r.add_drain_callback(lambda seconds: print(seconds + 0.5))
    handler = r.add_signal_handler(signal.SIGTERM, r.drain, 30, 1)
    assert_type(handler, SignalHandler)
    assert_type(r.remove_signal_handler(signal.SIGTERM), bool)
    assert_type(r.idle(two, 1, 'x'), Idler)
    notifier = r.notifier(two, 1, 'x', once=False)
    notifier.trigger()
    assert_type(notifier, Notifier)
    assert_type(r.watch_fd(sys.stdin, reactor.READ, on_ready, 'x'), Descriptor)
    r.watch_fd(0, reactor.READ, lambda handle, event: handle.close())
    call = r.run_in_thread(two, 1, 'x', on_done=on_result)
    assert_type(call, ThreadCall)
    r.run_in_thread(sorted, [1, 2])
    assert_type(r.resolve('localhost', on_addresses, family=2, timeout=1), LookUp)
    r.resolve('localhost', lambda addresses, error: print(addresses, error))
    r.resolve_address(('::1', 1), lambda name, error: print(name, error))
    assert_type(r.stats(), Stats)
    assert_type(r.handles(), list[Handle])
    assert_type(r.why_alive(10), list[str])
    for handle in r.handles():
        handle.unref()
        handle.ref()
        handle.close()


with Mine(selector=None, catch_errors=False) as mine:
    assert_type(mine, Mine)
    mine.run(run)
    mine.run_once(0)
