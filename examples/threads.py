"""Blocking work in threads, its results in the loop, and a thread of one's own that reports by a notifier.

Run it:    python examples/threads.py
Seen:      digests as they are ready, an error as an error, steps of a worker, and a loop that never stands still
"""

import hashlib
import threading

import reactor


def digest(number):
    return hashlib.pbkdf2_hmac('sha256', b'password', bytes([number]), 50_000).hex()[:16]


def main(r):
    ticks = r.call_every(0.005, lambda: None)
    calls = 5

    def on_done(result, error):
        nonlocal calls
        calls -= 1
        print(f'failed: {error!r}' if error is not None else f'digest {result}', flush=True)
        if not calls:
            ticks.cancel()

    for number in range(calls - 1):
        r.run_in_thread(digest, number, on_done=on_done)
    r.run_in_thread(digest, -1, on_done=on_done)  # no byte is below 0

    steps = []  # what the worker has done and the loop has not seen

    def on_progress():  # many triggers may be one call: take all there is
        while steps:
            print(f'step {steps.pop(0)}', flush=True)

    def work():
        for step in range(3):
            steps.append(step)
            progress.trigger()
        r.call_soon_threadsafe(progress.close)  # after the call that the last trigger asked for

    progress = r.notifier(on_progress, once=False)
    threading.Thread(target=work, daemon=True).start()


if __name__ == '__main__':
    reactor.run(main)
    print('ended')
