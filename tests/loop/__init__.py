"""Tests of `reactor.loop`."""
