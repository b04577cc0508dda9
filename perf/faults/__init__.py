"""Load and faults, measured against what is promised: `python -m perf.faults`."""
