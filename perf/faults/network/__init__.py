"""A faulty network between two simulated hosts, and the cases of M11, which use it."""
