"""Model-based tests: random steps on the reactor and on a simple model, which must agree."""
