"""Tests of what a program imports: the facade, framing, types, and the arguments of every public call."""
