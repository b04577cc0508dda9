"""Mixed traffic with faults, for any length of time: `python -m perf.soak`."""
