"""Tests of the reactor, in folders that mirror the package; what concerns all of it has folders of its own."""
