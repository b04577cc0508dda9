"""Statistics: ratios taken pair by pair within a round, their median, and how far they spread.

Owns the arithmetic. Knows no peer and no unit. The rule: the interval is min to max of the rounds, which holds the true
median with more than 96 % from six rounds on, whatever the distribution.
"""

from statistics import median


def summary(values):
    """Median, minimum and maximum of figures that were measured; None when there are none."""
    return {'median': median(values), 'min': min(values), 'max': max(values)} if values else None


def ratios(rounds, metric, ours, theirs):
    """ours/theirs in each round that has both."""
    pairs = [(one.get(ours, {}).get(metric), one.get(theirs, {}).get(metric)) for one in rounds]
    return [mine / other for mine, other in pairs if mine is not None and other]


def values(rounds, metric, peer):
    found = [one.get(peer, {}).get(metric) for one in rounds]
    return [value for value in found if value is not None]
