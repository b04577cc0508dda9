"""A faulty network between two hosts in one machine, and the cases of M11, which use it."""
