"""Child processes, their pipes, and watched paths."""
