"""Tests for `reactor.observe`."""
