"""Modules shared by tests, and programs that tests run."""
