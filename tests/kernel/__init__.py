"""Tests of `reactor.kernel`."""
