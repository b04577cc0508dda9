"""Tests of `reactor.demo`."""
