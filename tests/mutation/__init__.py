"""Tests of the tests: the tests of this project must find planted bugs and randomly drawn bugs."""
