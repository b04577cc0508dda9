"""A network with faults between two hosts in one machine, and the cases that use it."""
