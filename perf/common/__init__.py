"""Modules that several tools share: the machine, the process of a server, progress, arithmetic."""
