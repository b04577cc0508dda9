"""Timers: later, repeated, moved, cancelled, and the loop that ends when none is left.

Run it:    python examples/timers.py
Seen:      ticks every 0.1 s, a deadline that keeps being moved, and the end after about a second
"""

import reactor


def main(r):
    started = r.now

    def say(text):
        print(f'{r.now - started:.1f} s  {text}', flush=True)

    ticks = r.call_every(0.1, say, 'tick')
    watchdog = r.call_later(0.25, say, 'the watchdog barks')
    feeding = r.call_every(0.2, watchdog.reset)  # it is moved in time, so it does not bark
    never = r.call_later(0.5, say, 'this is cancelled')
    heartbeat = r.call_every(60, say, 'this does not keep the loop running')

    heartbeat.unref()
    never.cancel()
    r.call_soon(say, 'first')
    r.call_later(0.55, ticks.cancel)
    r.call_later(0.7, feeding.cancel)  # and a quarter of a second later it does bark


if __name__ == '__main__':
    reactor.run(main)
    print('nothing is left to wait for')
