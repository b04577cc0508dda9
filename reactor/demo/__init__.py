"""The experiment: `python -m reactor.demo`."""
