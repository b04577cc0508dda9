"""The log: a line is not lost when `logging` can no longer be imported."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from reactor.loop.log import describe, log

REASON = f"[Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}: 'logging'"


class NoDescriptors:
    """An importer that fails because the descriptor limit is reached."""

    def find_spec(self, name, path=None, target=None):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)


@pytest.fixture
def not_imported(monkeypatch):
    """Simulate a process that has not imported `logging`, and cannot do so because no descriptor is left."""
    monkeypatch.delitem(sys.modules, 'logging')
    monkeypatch.setattr(sys, 'meta_path', [NoDescriptors()])


def test_without_a_descriptor_to_import_logging_the_line_goes_to_standard_error(not_imported, capsys):
    log('warning', '%s was lost', 'it')
    assert capsys.readouterr().err == f'it was lost (not logged: {REASON})\n'


def test_without_a_descriptor_to_import_logging_the_traceback_goes_to_standard_error(not_imported, capsys):
    try:
        raise ValueError('boom')
    except ValueError as exc:
        log('error', 'exception in %s', 'a callback', exc=exc)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f'exception in a callback (not logged: {REASON})'
    assert lines[1].startswith('Traceback') and lines[-1] == 'ValueError: boom'


def test_with_logging_the_line_goes_to_the_logger_of_the_reactor(caplog):
    log('error', '%d %s', 1, 'line')
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ('reactor', 'ERROR', '1 line')
    ]


@pytest.mark.parametrize(('length', 'text'), [(1000, 'x' * 1000), (1001, 'x' * 1000 + '... (1,001 characters)')])
def test_a_thousand_characters_of_an_object_are_shown(length, text):
    assert describe('x' * length) == text
