"""Tests of `reactor.net`."""
