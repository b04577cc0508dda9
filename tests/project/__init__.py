"""Tests of the documents, of the structure of the code, and of the test suite itself."""
