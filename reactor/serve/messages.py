"""The messages between the parent and its workers: lines of JSON on a pair of sockets."""

from __future__ import annotations

REPORTS_EVERY = 1.0  # seconds between two reports of a worker, and between two checks for silent workers
LONGEST_ANSWER = 4 << 20  # characters of the answer to a question; in a message they can take twice as many bytes
MOST_QUESTIONS = 8  # unanswered at once; a worker that hangs gets no more, so that it can catch up quickly
