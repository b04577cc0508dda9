"""Modules that tests share, and programs that tests run."""
