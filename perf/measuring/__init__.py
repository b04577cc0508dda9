"""How a process is measured: its server, its CPU time and memory, rounds, ratios, tables and charts."""
