"""Tests of `reactor.system`."""
