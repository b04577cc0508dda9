"""Tools that measure the reactor, one folder each; README.md says how to run them."""
