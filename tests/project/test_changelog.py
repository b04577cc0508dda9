"""Tests of the documents: the changelog is sorted, and public names and counters are explained."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import reactor
from reactor.loop.counters import TIMES
from reactor.serve.health import Health, Snapshots
from tests.helpers import counters_table

CHECKOUT = Path(__file__).parents[2]
CHANGELOG = (CHECKOUT / 'CHANGELOG.md').read_text()
COUNTERS = (CHECKOUT / 'docs' / 'counters.md').read_text()
LIMITS = (CHECKOUT / 'docs' / 'limits.md').read_text()
COSTS = (CHECKOUT / 'docs' / 'costs.md').read_text()
RELEASES, VERSIONS = CHANGELOG.split('\n## What a version number means\n')
PUBLIC = re.findall(r'`(reactor[\w.]*)`', re.search(r'^\| `reactor`.*\n(?:\| `reactor\..*\n)*', VERSIONS, re.M)[0])
MODULES = [name for name in PUBLIC if name != 'reactor.__all__']


def rows(text):
    """Generate the cells of each row of each table, without headings and rules."""
    tables = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
    assert tables
    for table in tables:
        lines = table.splitlines()
        assert {line.count('|') for line in lines} == {lines[0].count('|')}, lines[0]
        for line in lines[2:]:
            yield [cell.strip() for cell in line.strip('|').split('|')]


def test_the_changelog_begins_with_unreleased_changes_and_then_this_version():
    heads = re.findall(r'^## (.*)$', RELEASES, re.MULTILINE)
    assert heads[0] == '[Unreleased]' or heads[0].startswith(f'[{reactor.__version__}]')
    releases = [head for head in heads if head != '[Unreleased]']
    found = [re.fullmatch(r'\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d', head) for head in releases]
    assert all(found), releases
    numbers = [tuple(map(int, match.groups())) for match in found]
    assert numbers == sorted(numbers, reverse=True)
    assert '.'.join(map(str, numbers[0])) == reactor.__version__


def test_changes_have_the_headings_of_keep_a_changelog():
    kinds = re.findall(r'^### (.*)$', RELEASES, re.MULTILINE)
    assert kinds and set(kinds) <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}


def test_links_lead_to_files():
    for path, text in (('.', CHANGELOG), ('docs', COUNTERS), ('docs', LIMITS)):
        targets = re.findall(r'\]\((?!https?:|#)([^)#]+)', text)
        assert not [target for target in targets if not (CHECKOUT / path / target).exists()]


def test_links_into_a_page_lead_to_one_of_its_headings():
    found = 0
    for folder, text in (('.', CHANGELOG), ('docs', LIMITS)):
        for path, anchor in re.findall(r'\]\(([^)#:]*)#([^)]+)\)', text):
            page = (CHECKOUT / folder / path).read_text() if path else text
            heads = re.findall(r'^#+ (.*)$', page, re.MULTILINE)
            assert anchor in {re.sub(r'[^\w -]', '', head).strip().lower().replace(' ', '-') for head in heads}, anchor
            found += 1
    assert found >= 3


@pytest.mark.parametrize('module', MODULES)
def test_every_name_of_a_public_module_is_explained(module):
    module = importlib.import_module(module)
    assert module.__doc__ and module.__all__
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        assert value.__doc__, name
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if not attribute.startswith('_') and (inspect.isfunction(member) or isinstance(member, property)):
                inherited = [getattr(base, attribute, None) for base in value.__mro__[1:]]
                assert member.__doc__ or any(getattr(other, '__doc__', None) for other in inherited), attribute


def test_every_public_package_is_listed():
    packages = {path.parent.name for path in (CHECKOUT / 'reactor').glob('*/__init__.py')}
    internal = {'admission', 'kernel', 'loop', 'net', 'system', 'toolbox', 'demo'}  # `demo` has only commands
    assert {name.split('.')[1] for name in MODULES if '.' in name} == (packages - internal) | {'framing'}


def test_the_promised_pythons_are_those_in_the_package_metadata_and_in_ci():
    promised = set(re.findall(r'\b3\.\d+', VERSIONS.split('### Which Pythons')[1].split('\n## ')[0]))
    settings = (CHECKOUT / 'setup.cfg').read_text()
    assert promised == set(re.findall(r'Python :: (3\.\d+)$', settings, re.MULTILINE))
    tried = re.search(r'^for version in (.*); do$', (CHECKOUT / '.ci' / 'run').read_text(), re.MULTILINE)
    assert promised == set(tried[1].split())


def test_every_counter_of_stats_is_in_the_table_of_counters():
    with reactor.Reactor() as r:
        figures = r.stats().as_dict()
    assert {row[0].strip('`') for row in rows(COUNTERS.split(counters_table.WITHOUT_COUNTER)[0])} == set(figures)


def test_the_table_of_counters_agrees_with_the_declarations():
    assert counters_table.written(COUNTERS) == COUNTERS, 'run python -m tests.helpers.counters_table'


def test_the_documented_metrics_are_those_exported_to_prometheus():
    pytest.importorskip('prometheus_client', reason="NOT TESTED: metrics; pip install -e '.[metrics]'")
    metrics = pytest.importorskip('reactor.observe.metrics', reason='NOT TESTED: metrics')
    with reactor.Reactor() as r:
        service = Snapshots(Health(False, [], {}, True), [])
        service.update(metrics.source_of(r)())
        collected = list(metrics.ReactorCollector(lambda: service).collect())
    known = {f'{metric.name}_total' if metric.type == 'counter' else metric.name for metric in collected}
    counted, others = COUNTERS.split(counters_table.WITHOUT_COUNTER)
    listed = {row[1].strip('`') for row in rows(counted)} | {row[0].strip('`') for row in rows(others)}
    assert listed ^ known == {'reactor'}
    assert {row[1] for row in rows(counted) if row[0].strip('`') in TIMES} == {'`reactor_phase_seconds_total`'}


def number(text):
    value, _, unit = text.replace(',', '').partition(' ')
    return float(value) * {'': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 's': 1, 'ms': 1e-3}[unit]


def test_the_documented_limits_agree_with_the_code():
    bounds = [row for row in rows(LIMITS) if '.py) `' in row[-1]]
    assert len(bounds) > 10
    for what, bound, _, where in bounds:
        path, name = re.fullmatch(r'\[.*\]\(\.\./(.*)\.py\) `(\w+)`', where).groups()
        assert getattr(importlib.import_module(path.replace('/', '.')), name) == number(bound), what


def test_the_documented_figures_of_other_servers_agree_with_the_page_of_costs():
    figures = [row[2] for row in rows(LIMITS) if len(row) > 2 and '–' in row[2]]
    assert len(figures) > 5
    assert not [figure for figure in figures if figure not in COSTS]
