"""Tests of the programs in `examples/recipes/`, each against the real library or service."""
