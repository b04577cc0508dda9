"""The messages between the parent and its workers: lines of JSON on a pair of sockets."""

from __future__ import annotations

REPORTS_EVERY = 1.0  # seconds between two reports of a worker, and between two checks for silent workers
