"""The documentation: its programs run, its pages are built without a warning, and its links lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import reactor
from tests.api.test_facade import PARTS  # internal attributes
from tests.site.pages import CHECKOUT, DOCS, Reader, blocks, pages, ports

needs_sphinx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('sphinx', 'furo', 'myst_parser'))),
    reason="NOT TESTED: Sphinx is not installed: pip install -e '.[docs]'",
)
# The guides for porting quote pieces of programs: tests/examples/test_porting.py compares and runs these.
WITH_PROGRAMS = [
    page for page in pages()
    if page.parent.name != 'porting' and re.search(r'^```(python|sh)$', page.read_text(), re.MULTILINE)
]  # fmt: skip


@pytest.mark.parametrize('page', WITH_PROGRAMS, ids=[str(page.relative_to(DOCS)) for page in WITH_PROGRAMS])
def test_every_program_of_a_page_runs_as_it_stands(page, tmp_path):
    Reader(tmp_path).read(page)


def test_no_two_pages_use_the_same_port():
    seen: dict[str, str] = {}
    for page in pages():
        for port in ports(page):
            assert seen.setdefault(port, page.name) == page.name, f'{page.name} and {seen[port]} both use {port}'


def test_the_workers_behind_haproxy_are_started_with_options_that_they_have():
    """tests/serve/test_haproxy.py runs this block."""
    page = (DOCS / 'operations' / 'load-balancers.md').read_text()
    (code,) = [code for language, code, *_ in blocks(page) if language == 'sh']
    for line in re.findall(r'^python3 (.*) &$', code, re.MULTILINE):
        path, *options = shlex.split(line)
        command = [sys.executable, path, '--help']
        done = subprocess.run(
            command, cwd=CHECKOUT, env={**os.environ, 'PYTHONPATH': '.'}, capture_output=True, text=True, timeout=30
        )
        assert all(word in done.stdout for word in options if word.startswith('--')), done.stderr
    assert (CHECKOUT / re.search(r'haproxy -f (\S+)', code)[1]).exists()


def test_the_api_on_one_page_names_everything_public():
    page = (DOCS / 'reference' / 'index.md').read_text()
    for name in reactor.__all__:
        if name not in ('READ', 'WRITE', 'Listener', 'Stats', 'Stream'):
            assert (
                f'`{name}' in page or f'`reactor.{name}`' in page or f'reactor.{name}(' in page or f'**{name}**' in page
            ), name
    for name in set(dir(reactor.Reactor)) - PARTS:
        if not name.startswith('_'):
            assert name in page, name


def test_every_test_named_in_the_comparison_exists():
    links = re.findall(r'\[([^]]+)\]\((?!https?:|#)([^)#]+)', (DOCS / 'costs.md').read_text())
    named = [(text, DOCS / target) for text, target in links if text.startswith('test_') and not text.endswith('.py')]
    assert len(named) > 10
    assert not [f'{target}::{name}' for name, target in named if f'\ndef {name}(' not in target.read_text()]


@pytest.mark.parametrize('page', pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_all_rows_of_a_table_have_the_same_number_of_cells(page):
    for table in re.findall(r'(?:^\|.*\n)+', page.read_text(), re.MULTILINE):
        rows = [row.replace('\\|', '') for row in table.splitlines()]
        assert {row.count('|') for row in rows} == {rows[0].count('|')}, rows[0]


def test_the_comparison_uses_all_of_its_footnotes_and_no_others():
    page = (DOCS / 'costs.md').read_text()
    table = re.search(r'^\| \| reactor \| asyncio .*?\n\n(.*?)\n\n', page + '\n\n', re.MULTILINE | re.DOTALL)
    numbers = re.findall(r'(?:^| · )(\d+) ', table[1].replace('\n', ' '))
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert set(re.findall(r'\| p (\d+)', table[0])) == set(numbers)
    assert '| p |' not in table[0]


def test_the_names_in_the_table_of_the_loop_exist_in_its_files():
    rows = re.findall(r'^\| \d: [^|]+\|([^|]+)\|([^|]+)\|$', (DOCS / 'tutorial/loop-real.md').read_text(), re.MULTILINE)
    assert len(rows) == 7
    for names, files in rows:
        modules = [importlib.import_module(file.replace('/', '.')) for file in re.findall(r'`([\w/]+)\.py`', files)]
        for owner, _, method in (name.partition('.') for name in re.findall(r'`([\w.]+)`', names)):
            classes = [vars(module)[owner] for module in modules if owner in vars(module)]
            assert any(not method or method in vars(cls) for cls in classes), f'{owner}.{method}'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The built site."""
    out = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', str(DOCS), str(out)],
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get('id'))
        self.links.update(found[name] for name in ('href', 'src') if found.get(name))


@pytest.mark.slow
@needs_sphinx
def test_the_site_is_built_without_a_warning_and_every_link_inside_it_leads_somewhere(site):
    built = {path: Links(path.read_text()) for path in site.rglob('*.html')}
    assert len(built) >= 20
    broken = []
    for path, page in built.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            target = target.partition('?')[0]  # the version of a stylesheet
            if re.match(r'[a-z]+:', target):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / 'index.html' if file.is_dir() else file
            known = built[file].anchors if file in built else None
            if not file.exists() or (anchor and known is not None and unquote(anchor) not in known):
                broken.append(f'{path.relative_to(site)}: {link}')
    assert not broken
    index = re.findall(r'\]\(([^)]+)\)', (site / 'llms.txt').read_text())
    assert len(index) > 10 and not [link for link in index if not (site / link).exists()]


@pytest.mark.slow
@needs_sphinx
def test_every_public_name_has_an_entry_in_the_reference(site):
    text = ''.join(path.read_text() for path in (site / 'reference').rglob('*.html'))
    missing = [
        name
        for name in reactor.__all__
        if f'id="reactor.{name}"' not in text and f'id="module-reactor.{name}"' not in text
    ]
    public = [name for name in dir(reactor.Reactor) if not name.startswith('_')]
    missing += [name for name in public if name not in PARTS and f'id="reactor.Reactor.{name}"' not in text]
    assert not missing


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('codespell_lib'), reason="NOT TESTED: no codespell: pip install -e '.[docs]'"
)
def test_the_words_of_the_site_are_spelt_correctly():
    done = subprocess.run(
        [sys.executable, '-m', 'codespell_lib', str(DOCS), str(Path(DOCS.parent) / 'README.md')],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_entry_of_the_reference_has_a_link_to_a_program_or_a_page_that_uses_it():
    for path in (DOCS / 'reference').glob('*.md'):
        intro, _, entries = path.read_text().partition('```{eval-rst}\n')
        for entry in re.split(r'^\.\. ', entries, flags=re.MULTILINE)[1:]:
            assert 'Used in: ' in entry or '](../' in intro, (path.name, entry.splitlines()[0])


@needs_sphinx
@pytest.mark.slow
def test_nothing_on_a_page_is_loaded_from_elsewhere(site):
    for path in site.rglob('*.html'):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text())
        assert not loaded, path
