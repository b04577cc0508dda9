"""Load and faults, measured and compared with what is promised: `python -m perf.faults`."""
