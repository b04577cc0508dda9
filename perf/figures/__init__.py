"""The figures of load and fault, one class for each, in the order in which they are measured and shown.

Owns the list. The rule: a figure is one line here and one class in a module beside this.
"""

from .held import AtTheLimit, Idle, TwoWorkers

FIGURES = [
    Idle(),
    TwoWorkers(),
    AtTheLimit(),
]

BY_NAME = {figure.name: figure for figure in FIGURES}
