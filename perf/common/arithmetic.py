"""Arithmetic that several tools share: a quantile of figures, and the order of peers in a round."""


def quantile(ordered, share):
    """Return the value below which `share` of the sorted values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def rotated(names, turn):
    """Return the order in which peers are measured in a round: each comes first in its turn."""
    start = turn % len(names) if names else 0
    return names[start:] + names[:start]
