"""The reactor and its peers side by side: `python -m perf.compare`."""
