"""Tools that many programs need, built on the public API: `reconnect`, `Requests` and `Group`.

`reactor` imports a module of this package at the first use of its name.
"""
