"""Measure the reactor under load and faults, and compare the results with what is promised: `python -m perf.faults`."""
