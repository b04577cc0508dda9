"""Tests of `reactor.admission`."""
