"""Instructions per request: a server under callgrind, a client that asks in lock-step, and budgets to compare with."""
