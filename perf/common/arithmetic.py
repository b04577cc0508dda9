"""Arithmetic that several tools share: a quantile, and the rotating order of rounds."""


def quantile(ordered, share):
    """Return the value below which `share` of the sorted values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def rotated(names, turn):
    """Return the names in the order for round `turn`: in `len(names)` rounds, each name comes first once."""
    start = turn % len(names) if names else 0
    return names[start:] + names[:start]
