"""What runs and when: the turn, timers, watchers, the wakeup, signals, threads. Knows no protocol and no transport."""
