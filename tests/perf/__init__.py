"""Tests of the programs in `perf/`."""
