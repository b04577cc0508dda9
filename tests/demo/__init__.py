"""Tests for `reactor.demo`."""
