"""Tests of `reactor.serve`."""
