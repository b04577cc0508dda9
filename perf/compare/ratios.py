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


def at_equal_wakeups(rounds, metric, ours, theirs):
    """Return ours/theirs for each round, as if the peer had woken up as often as we did.

    Each wake-up costs the peer about the same CPU time. That cost is the slope of a line through the peer's rounds,
    which differ in their number of wake-ups. The peer's cost is moved along this line (an analysis of covariance).
    """
    less = metric.better == 'less'
    found = [one for one in rounds if metric.name in one.get(ours, {}) and metric.name in one.get(theirs, {})]
    points = {
        name: [(one[name][metric.wakeups], one[name][metric.name] ** (1 if less else -1)) for one in found]
        for name in (ours, theirs)
    }
    slope = least_squares(points[theirs])
    moved = [
        cost / (other + slope * (wakeups - others))
        for (wakeups, cost), (others, other) in zip(points[ours], points[theirs], strict=True)
    ]
    return moved if less else [1 / ratio for ratio in moved]


def least_squares(points):
    """Return the slope of the line through (x, y) points; 0 if all x are equal."""
    if not points:
        return 0.0
    middle_x, middle_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


def values(rounds, metric, peer):
    """Return the figures of one peer; rounds without a figure are skipped."""
    found = [one.get(peer, {}).get(metric) for one in rounds]
    return [value for value in found if value is not None]
