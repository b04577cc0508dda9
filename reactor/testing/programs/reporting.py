"""Threads that report their progress to the loop while they work."""

from __future__ import annotations

from typing import Any

from .parts import AnyWorld, WaitGroup, new_random


def reporting(world: AnyWorld) -> None:
    """Each thread sends numbers to the loop, which must get them in order, and all of them before the result."""
    rng, group, r = new_random(world), WaitGroup(world), world.r

    def begin(part: int, most: int) -> None:
        got: list[int] = []
        cancelled = False

        def work() -> int:
            for number in range(most):
                r.call_soon_threadsafe(report, number)
            return most

        def report(number: int) -> None:
            got.append(number)
            if len(got) != number + 1:
                world.fail(f'number {number} of a thread arrived as number {len(got) - 1}')
            world.trouble()

        def on_done(result: Any, error: BaseException | None) -> None:
            group.done(part)
            if cancelled:
                world.fail('on_done was called after the call in a thread was cancelled')
            if not world.faulty and error is not None:
                world.fail(f'a call in a thread failed with {error!r}')
            if error is None and not len(got) == result == most:
                world.fail(f'{len(got)} of {most} numbers arrived before the result {result}')
            world.trouble()

        def cancel() -> None:
            nonlocal cancelled
            if not handle.closed:
                cancelled = True
                handle.close()
                group.done(part)

        handle = r.run_in_thread(work, on_done=on_done)
        if rng.random() < 0.2:
            r.call_later(rng.random() * 2, cancel)

    for _ in range(rng.randint(1, 8)):
        r.call_later(rng.random(), begin, group.add('thread'), rng.randint(0, 9))
