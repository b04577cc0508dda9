"""The parts of perf/profile.sh: servers to profile, the load on them, and the reports about the recordings."""
