"""What several tools share: the machine, the process of a server, statistics, a progress line."""
