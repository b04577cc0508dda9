"""The mutants that the tests have to find: 600 small changes to the code, drawn from all that cosmic-ray can make.

Every change is made by an operator of cosmic-ray. The list, `drawn.json`, was committed before any mutant was run, and
does not depend on outcomes. It was drawn by these rules:

- Each module has a share of the list in proportion to its lines of code.
- Within a module, each place in the code has the same chance, and within a place, each mutant has the same chance.
  Otherwise a `+`, which has eleven mutants, would be drawn eleven times as often. A place is drawn at most once.
- Code without behaviour is left out: annotations, `if TYPE_CHECKING:`, the functions in TEXT, and the arguments of the
  functions in LOG. Docstrings have no mutants.
- A mutant is left out if it does not compile, compiles with a warning, or has the same syntax tree as the code.

In code that has changed since, a mutant is found by the text that it changes and by the function around it. Its
occurrence and line refer to the code from which it was drawn; the list has the SHA-256 of that code.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).resolve().parent / 'drawn.json'

SEED = 20261129
COUNT = 600
PARTS = ('framing.py', 'loop', 'net', 'observe', 'serve')  # when the list was drawn, `admission` was part of `net`
OPERATORS = (
    'core/AddNot',
    'core/ExceptionReplacer',
    'core/NumberReplacer',
    'core/RemoveDecorator',
    'core/ReplaceAndWithOr',
    'core/ReplaceBinaryOperator_*',
    'core/ReplaceBreakWithContinue',
    'core/ReplaceComparisonOperator_*',
    'core/ReplaceContinueWithBreak',
    'core/ReplaceFalseWithTrue',
    'core/ReplaceOrWithAnd',
    'core/ReplaceTrueWithFalse',
    'core/ReplaceUnaryOperator_*',
    'core/ZeroIterationForLoop',
)
# VariableInserter and VariableReplacer are left out too: they use their own random numbers, so the list could not be
# drawn again. The first four operators below exchange identity and equality, which are the same for nearly all objects
# compared here. The other operators compare the order of objects that have no order. Their mutants raise TypeError as
# soon as a test reaches them, so they would only improve the result.
NOT_DRAWN = (
    'core/ReplaceComparisonOperator_Is_Eq',
    'core/ReplaceComparisonOperator_IsNot_NotEq',
    'core/ReplaceComparisonOperator_Eq_Is',
    'core/ReplaceComparisonOperator_NotEq_IsNot',
    *(f'core/ReplaceComparisonOperator_{old}_{new}' for old in ('Is', 'IsNot') for new in ('Lt', 'LtE', 'Gt', 'GtE')),
)
TEXT = ('__repr__', '__str__')
LOG = ('log', '_log')

Span = tuple[tuple[int, int], tuple[int, int]]  # (line, column) of the start and of the end


class Mutant(NamedTuple):
    """A change to the code.

    number      the number in the list
    module      the path of the module within the project
    operator    the cosmic-ray operator
    occurrence  the index of the place among all places that the operator can change
    line        the line of the place
    function    the innermost function or class around it, '' for none
    before      the original lines
    after       the changed lines
    """

    number: int
    module: str
    operator: str
    occurrence: int
    line: int
    function: str
    before: str
    after: str

    def diff(self) -> str:
        removed = [f'-{line}' for line in self.before.splitlines()]
        added = [f'+{line}' for line in self.after.splitlines()]
        name = self.operator.removeprefix('core/')
        return '\n'.join([f'{self.number}: {self.module}:{self.line} {self.function} ({name})', *removed, *added])


class Place(NamedTuple):
    """A place where one operator can change the code."""

    operator: str
    occurrence: int
    span: Span
    function: str


def modules(project: Path = PROJECT) -> list[Path]:
    """Return the modules that are mutated."""
    parts = [project / 'reactor' / part for part in PARTS]
    return [path for part in parts for path in ([part] if part.suffix else sorted(part.rglob('*.py')))]


def operators() -> list[str]:
    """Return the names of the operators, in alphabetical order."""
    from cosmic_ray.plugins import operator_names

    return sorted(
        name
        for name in operator_names()
        if any(fnmatchcase(name, pattern) for pattern in OPERATORS) and name not in NOT_DRAWN
    )


def left_out(tree: ast.Module) -> list[Span]:
    """Return the spans of code without behaviour, by the third rule."""
    found: list[Any] = []
    for node in ast.walk(tree):
        match node:
            case ast.arg() | ast.AnnAssign():
                found.append(node.annotation)
            case ast.FunctionDef() if node.name in TEXT:
                found.append(node)
            case ast.FunctionDef():
                found.append(node.returns)
            case ast.If(test=ast.Name('TYPE_CHECKING')) | ast.Assign(targets=[ast.Name('TYPE_CHECKING')]):
                found.append(node)
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if name in LOG:
                found.append(node)
    # Columns of `ast` count bytes, and columns of cosmic-ray count characters: the same, as the package is ASCII.
    return [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in found if node is not None
    ]


def within(span: Span, others: list[Span]) -> bool:
    return any(begin <= span[0] and span[1] <= end for begin, end in others)


def lines_of_code(tree: ast.Module, without: list[Span]) -> int:
    """Count the lines on which a statement or an expression begins, without docstrings and left-out code."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.expr):
            begin = (node.lineno, node.col_offset)
            if not isinstance(node, ast.Constant | ast.Expr) and not within((begin, begin), without):
                lines.add(node.lineno)
    return len(lines)


def places(text: str, names: list[str]) -> Iterator[Place]:
    """Generate the places that each of these operators can change, numbered as in cosmic-ray."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.plugins import get_operator

    nodes = list(ast_nodes(get_ast(text)))
    for name in names:
        operator = get_operator(name)()
        spans = ((node, span) for node in nodes for span in operator.mutation_positions(node))
        for occurrence, (node, span) in enumerate(spans):
            yield Place(name, occurrence, span, ASTQuery(node).get_definition_name() or '')


def mutated(text: str, operator: str, occurrence: int) -> str | None:
    """Return the code with this mutant in it, or None if the last rule leaves the mutant out."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(text, get_operator(operator)(), occurrence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            compile(changed, '', 'exec')
    except (SyntaxError, SyntaxWarning):
        return None
    return None if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)) else changed


def changed_lines(text: str, changed: str) -> tuple[str, str]:
    """Return the lines in which the two texts differ, from each text."""
    old, new = text.splitlines(), changed.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return '\n'.join(old), '\n'.join(new)


def shares(sizes: dict[str, int]) -> dict[str, int]:
    """Divide COUNT among the modules in proportion to their size; the largest remainders are rounded up."""
    whole = sum(sizes.values())
    exact = {name: COUNT * size / whole for name, size in sizes.items()}
    result = {name: int(share) for name, share in exact.items()}
    remainders = sorted(sizes, key=lambda name: (result[name] - exact[name], name))
    for name in remainders[: COUNT - sum(result.values())]:
        result[name] += 1
    return result


def draw_from(name: str, text: str, share: int) -> list[Mutant]:
    """Draw the mutants of one module; their numbers are set later."""
    without = left_out(ast.parse(text))
    by_span: dict[Span, list[Place]] = {}
    for place in places(text, operators()):
        if not within(place.span, without):
            by_span.setdefault(place.span, []).append(place)
    chance = random.Random(f'{SEED} {name}')
    spans = sorted(by_span)
    chance.shuffle(spans)
    drawn: list[Mutant] = []
    for span in spans:
        if len(drawn) == share:
            break
        choices = by_span[span]
        chance.shuffle(choices)
        for operator, occurrence, _, function in choices:
            changed = mutated(text, operator, occurrence)
            if changed is not None:
                lines = changed_lines(text, changed)
                drawn.append(Mutant(0, name, operator, occurrence, span[0][0], function, *lines))
                break
    return drawn


def draw(project: Path = PROJECT) -> dict[str, Any]:
    """Draw the list, from the code of `project`."""
    texts = {path.relative_to(project).as_posix(): path.read_text() for path in modules(project)}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    sizes = {name: lines_of_code(tree, left_out(tree)) for name, tree in trees.items()}
    by_module = shares(sizes)
    drawn = [mutant for name, share in by_module.items() for mutant in draw_from(name, texts[name], share)]
    random.Random(SEED).shuffle(drawn)
    described = {
        name: {'lines': sizes[name], 'mutants': by_module[name], 'sha256': digest(texts[name])} for name in texts
    }
    mutants = [mutant._replace(number=number) for number, mutant in enumerate(drawn, 1)]
    return {'seed': SEED, 'modules': described, 'mutants': mutants}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(drawn: dict[str, Any]) -> None:
    """Write the list, with a line for each module and each mutant."""
    listed = [json.dumps(mutant._asdict()) for mutant in drawn['mutants']]
    described = [f'{json.dumps(name)}: {json.dumps(value)}' for name, value in drawn['modules'].items()]
    parts = [f'"seed": {drawn["seed"]}', '"modules": {\n' + ',\n'.join(described) + '\n}']
    parts.append('"mutants": [\n' + ',\n'.join(listed) + '\n]')
    LIST.write_text('{\n' + ',\n'.join(parts) + '\n}\n')


def read() -> dict[str, Any]:
    """Read the list, with the mutants in a dict by number."""
    drawn = json.loads(LIST.read_text())
    drawn['mutants'] = {one['number']: Mutant(**one) for one in drawn['mutants']}
    return drawn


def find(mutant: Mutant, text: str) -> tuple[int, str] | None:
    """Return the line of the mutant in this code, and the mutated code; None if the code is no longer there."""
    found = []
    for place in places(text, [mutant.operator]):
        if place.function == mutant.function:
            changed = mutated(text, place.operator, place.occurrence)
            if changed is not None and changed_lines(text, changed) == (mutant.before, mutant.after):
                found.append((place.span[0][0], changed))
    return min(found, key=lambda one: abs(one[0] - mutant.line), default=None)
