"""Statistics: ratios computed within a round, their median, and their spread.

The interval reaches from the minimum to the maximum of all rounds. With six or more rounds, it contains the true median
with a probability above 96 %, whatever the distribution.
"""

from statistics import median


def summary(values):
    """Return median, minimum and maximum, or None for an empty list."""
    return {'median': median(values), 'min': min(values), 'max': max(values)} if values else None


def ratios(rounds, metric, ours, theirs):
    """Return ours/theirs for each round that has both figures."""
    pairs = [(one.get(ours, {}).get(metric), one.get(theirs, {}).get(metric)) for one in rounds]
    return [mine / other for mine, other in pairs if mine is not None and other]


def values(rounds, metric, peer):
    """Return the figures of one peer; rounds without a figure are skipped."""
    found = [one.get(peer, {}).get(metric) for one in rounds]
    return [value for value in found if value is not None]
