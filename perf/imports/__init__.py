"""How long an import takes, compared with an import of the standard library: `python -m perf.imports`."""
