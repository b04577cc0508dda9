"""User instructions per request, counted by callgrind and compared with budgets: `python -m perf.instructions`."""
