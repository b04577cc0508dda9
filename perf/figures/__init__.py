"""The figures of load and fault, one class for each, in the order in which they are measured and shown.

Owns the list. The rule: a figure is one line here and one class in a module beside this.
"""

from .churn import Churn
from .clocks import Jumps, Timers
from .fairness import Firehose
from .held import AtTheLimit, Idle, TwoWorkers
from .loris import SlowLoris
from .unread import Unread

FIGURES = [
    Idle(),
    TwoWorkers(),
    AtTheLimit(),
    Churn(),
    Unread(),
    SlowLoris(),
    Firehose(),
    Timers(),
    Jumps(),
]

BY_NAME = {figure.name: figure for figure in FIGURES}
