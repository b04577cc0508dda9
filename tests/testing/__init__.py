"""Tests of `reactor.testing`, the simulated kernels."""
