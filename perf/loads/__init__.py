"""Loads: clients that send requests, each module in its own way. They run in the process of the tool."""
