"""The parts of soak.py: the process that serves, the one that drives it, what is promised of both, and the table."""
