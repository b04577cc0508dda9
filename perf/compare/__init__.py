"""Compare the reactor with its peers, side by side: `python -m perf.compare`."""
