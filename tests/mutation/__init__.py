"""Tests of the tests: they must find planted bugs and randomly drawn bugs."""
