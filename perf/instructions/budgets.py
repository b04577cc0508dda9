"""Budgets: how many instructions each workload may cost, for each build of Python. They are stored in budgets.json.

A budget belongs to a minor version of Python and to the way it was compiled, because both change every figure.
"""

import json
import platform
import ssl
import sysconfig
from pathlib import Path

FILE = Path(__file__).with_name('budgets.json')
TOLERANCE = 0.02  # relative difference above which a budget counts as exceeded, or can be lowered
OPTIONS = {'--enable-optimizations': 'pgo', '--with-lto': 'lto', '--enable-shared': 'shared', '--with-pydebug': 'debug'}
WITHIN, ABOVE, BELOW, NONE = 'within', 'above', 'below', 'no budget'


def build(version=None, config_args=None):
    """Return the name of a build of Python, like '3.11 shared'; by default the running one."""
    version = version or '.'.join(platform.python_version_tuple()[:2])
    arguments = (sysconfig.get_config_var('CONFIG_ARGS') or '') if config_args is None else config_args
    return ' '.join([version, *(word for option, word in OPTIONS.items() if option in arguments)])


def deviation(instructions, budget):
    """Return how far a figure is from its budget, as a fraction of the budget."""
    return instructions / budget - 1


def judge(instructions, budget):
    """Return WITHIN, ABOVE or BELOW, or NONE when the budget is None."""
    if budget is None:
        return NONE
    if instructions > budget * (1 + TOLERANCE):
        return ABOVE
    return BELOW if instructions < budget * (1 - TOLERANCE) else WITHIN


def read(path=FILE):
    """Return the content of the file: {build: {'instructions': {workload: budget}, 'measured': facts}}."""
    return json.loads(path.read_text())


def update(figures, commit, path=FILE):
    """Write the budgets of this build, {workload: instructions}; other budgets stay unchanged."""
    known = read(path) if path.exists() else {}
    entry = known.setdefault(build(), {})
    entry['measured'] = {
        'python': platform.python_version(),
        'compiler': platform.python_compiler(),
        'openssl': ssl.OPENSSL_VERSION,
        'commit': commit,
    }
    budgets = entry.setdefault('instructions', {})
    budgets.update({name: round(value) for name, value in figures.items()})
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + '\n')
