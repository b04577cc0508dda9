"""Tests of the reactor, in folders that mirror the package; tests of the whole package have their own folders."""
