"""Tests of the tests: planted and randomly drawn bugs must be found."""
