"""Transports: streams, listeners, datagram sockets and their parts. They use the loop, which never imports them."""
