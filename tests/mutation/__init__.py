"""Tests of the tests: bugs that are planted or drawn at random have to be found."""
