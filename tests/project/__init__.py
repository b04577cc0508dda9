"""Tests for the documents, the structure of the code, and the test suite itself."""
