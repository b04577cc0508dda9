"""The programs of the peers: servers and loops, each started in its own process by the path of its file."""
