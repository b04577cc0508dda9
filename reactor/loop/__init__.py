"""The event loop: its turn, timers, watchers, wakeup, signals and threads. No module here knows a protocol."""
