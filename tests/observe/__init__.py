"""Tests of `reactor.observe`."""
