"""The servers and loops that are compared; each is a program that runs in a process of its own."""
