"""The clients that measure: each asks in one manner. They run in the process of compare.py, on the load's core."""
