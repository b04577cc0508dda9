"""How Sphinx builds the site: `sphinx-build -W docs OUT`."""

from __future__ import annotations

import reactor

project = 'reactor'
copyright = 'the authors of reactor'
release = version = reactor.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['README.md']

default_role = 'code'  # docstrings write names in single backticks
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_heading_anchors = 3
myst_enable_extensions = ['deflist', 'attrs_inline']

html_theme = 'furo'
html_title = 'reactor'
html_extra_path = ['llms.txt']
html_static_path = []
html_copy_source = False


def code_in_docstrings(app, what, name, obj, options, lines):
    """Mark code in docstrings, which begins after a colon and an empty line, as reStructuredText marks it."""
    for number, line in enumerate(lines[:-2]):
        indented = len(lines[number + 2]) - len(lines[number + 2].lstrip()) > len(line) - len(line.lstrip())
        if line.endswith(':') and not lines[number + 1].strip() and indented:
            lines[number] = line + ':'


def setup(app):
    app.connect('autodoc-process-docstring', code_in_docstrings, priority=400)  # before napoleon
