"""The experiment `python -m reactor.demo`: 40,000 connections at once, each answered after a delay."""
