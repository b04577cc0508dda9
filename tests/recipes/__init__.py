"""Tests of the programs in `examples/recipes/`, each with the real library or service."""
