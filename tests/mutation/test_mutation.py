"""The stored data of mutation testing is valid: the list can be drawn again, and equivalent mutants have reasons."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.mutation import __main__ as mutation
from tests.mutation import drawing
from tests.mutation.drawing import COUNT, PROJECT, SEED

MOST_EQUIVALENT = 0.08  # the largest share of the list that may be equivalent
KEPT = Path(__file__).parent / 'drawn_from'

drawn = drawing.read()
needs_the_tool = pytest.mark.skipif(
    importlib.util.find_spec('cosmic_ray') is None,
    reason="cosmic-ray is not installed, so the list of mutants is not checked: pip install -e '.[mutation]'",
)


def test_the_list_has_the_stated_number_of_mutants():
    """Also, each module has its share, and no two mutants change the same place."""
    mutants = drawn['mutants'].values()
    assert drawn['seed'] == SEED
    assert [mutant.number for mutant in mutants] == list(range(1, COUNT + 1))
    sizes = {name: module['lines'] for name, module in drawn['modules'].items()}
    assert drawing.shares(sizes) == {name: module['mutants'] for name, module in drawn['modules'].items()}
    for name, module in drawn['modules'].items():
        assert sum(mutant.module == name for mutant in mutants) == module['mutants'], name
    assert len({(mutant.module, mutant.operator, mutant.occurrence) for mutant in mutants}) == COUNT


@needs_the_tool
@pytest.mark.timeout(120)
def test_the_list_can_be_drawn_again_from_its_seed():
    """This is checked on two small modules, whose text is stored as it was when the list was drawn."""
    texts = sorted(KEPT.glob('*.py.txt'))
    assert len(texts) == 2
    for kept in texts:
        name, text = f'reactor/net/{kept.name.removesuffix(".txt")}', kept.read_text()
        assert drawing.digest(text) == drawn['modules'][name]['sha256']
        listed = [mutant._replace(number=0) for mutant in drawn['mutants'].values() if mutant.module == name]
        again = drawing.draw_from(name, text, drawn['modules'][name]['mutants'])
        assert sorted(again) == sorted(listed), name


@needs_the_tool
def test_a_mutant_is_found_where_the_code_has_moved():
    mutant = next(one for one in drawn['mutants'].values() if one.module == 'reactor/framing.py')
    text = (PROJECT / mutant.module).read_text()
    line, changed = drawing.find(mutant, text)
    assert mutant.before in text and mutant.after in changed
    assert drawing.find(mutant, f'# more\n\n{text}') == (line + 2, f'# more\n\n{changed}')
    assert drawing.find(mutant, text.replace(mutant.before, mutant.after)) is None


@needs_the_tool
def test_code_without_behaviour_is_not_drawn():
    text = """
from typing import Any
TYPE_CHECKING = False
if TYPE_CHECKING:
    A = 1 + 1
def behaves(a: int | None = 5, *b: Any | None) -> int | None:
    c: int | None = 7
    log('warning', '%s', 1 + 1)
    return c
class C:
    def __repr__(self):
        return str(1 + 1)
"""
    mutants = drawing.draw_from('module', text, 100)
    assert {mutant.line for mutant in mutants} == {6, 7}
    assert {mutant.operator for mutant in mutants} == {'core/NumberReplacer'}


def test_equivalent_mutants_are_few_and_each_has_a_reason():
    equivalent = mutation.equivalents()
    assert set(equivalent) <= set(drawn['mutants'])
    assert all(len(reason.split()) >= 4 for reason in equivalent.values()), 'each reason must be a sentence'
    assert len(equivalent) <= MOST_EQUIVALENT * COUNT
