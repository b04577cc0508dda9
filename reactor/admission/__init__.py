"""Admission: which clients may connect, how many, and how fast; and the PROXY protocol, which names the client."""
