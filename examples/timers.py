"""Timers: one-shot, repeated, moved and cancelled. The loop ends when no timer is left.

    $ python examples/timers.py
    0.0 s  first
    0.1 s  tick
    0.2 s  tick
    ...
    0.9 s  the watchdog barks
    nothing is left to wait for

Each line begins with the seconds since the start.
"""

import reactor


def main(r):
    started = r.now

    def say(text):
        print(f'{r.now - started:.1f} s  {text}', flush=True)

    ticks = r.call_every(0.1, say, 'tick')
    watchdog = r.call_later(0.25, say, 'the watchdog barks')
    feeding = r.call_every(0.2, watchdog.reset)  # moves the watchdog timer before it is due
    never = r.call_later(0.5, say, 'this is cancelled')
    heartbeat = r.call_every(60, say, 'this does not keep the loop running')

    heartbeat.unref()
    never.cancel()
    r.call_soon(say, 'first')
    r.call_later(0.55, ticks.cancel)
    r.call_later(0.7, feeding.cancel)  # from then on nothing moves the watchdog timer, so it fires


if __name__ == '__main__':
    reactor.run(main)
    print('nothing is left to wait for')
