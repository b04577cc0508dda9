"""Loads: clients that send requests. They run in the process of the tool."""
