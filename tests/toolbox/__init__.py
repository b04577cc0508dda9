"""Tests of `reactor.toolbox`."""
