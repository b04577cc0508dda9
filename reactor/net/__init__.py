"""Transports: streams, listeners, connectors, and what they need. Knows the loop, is known by nothing below it."""
