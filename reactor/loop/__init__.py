"""What runs and when: the turn, timers, watchers, the wakeup, signals, threads. Nothing here knows a protocol."""
