"""The event loop: turns, timers, watchers, wakeup, signals and threads. No module here knows a network protocol."""
