"""Tests for `reactor.serve`."""
