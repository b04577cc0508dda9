"""Loads: clients that send requests, each module in a way of its own. They run in the process of the tool."""
