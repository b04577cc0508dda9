"""Run blocking work in threads, get the results in the loop, and report progress from your own thread.

    $ python examples/threads.py
    step 0
    step 1
    step 2
    digest 51edb4bcf783b2e3

Four digests are computed in the reactor's thread pool, and a fifth call fails. Another thread reports the steps through
a notifier. The order of the lines varies. A timer ticks 200 times a second throughout, because the loop never blocks.
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
    r.run_in_thread(digest, -1, on_done=on_done)  # this call fails: a byte cannot be negative

    steps = []  # steps that the worker has finished and that are still to be printed

    def on_progress():  # several triggers may cause only one call, so print all steps
        while steps:
            print(f'step {steps.pop(0)}', flush=True)

    def work():
        for step in range(3):
            steps.append(step)
            progress.trigger()
        r.call_soon_threadsafe(progress.close)  # runs after the call caused by the last trigger

    progress = r.notifier(on_progress, once=False)
    threading.Thread(target=work, daemon=True).start()


if __name__ == '__main__':
    reactor.run(main)
    print('ended')
