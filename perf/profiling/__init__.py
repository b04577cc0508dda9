"""The parts of perf/profile.sh: servers to profile, their load, and what is made of the recordings."""
