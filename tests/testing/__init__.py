"""Tests of `reactor.testing`, the simulated systems."""
