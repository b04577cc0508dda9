"""A server that answers each request after a chain of CHAIN calls with call_soon, each of which adds the next.

A call that is added while other calls run is made in the next turn, so each call of the chain takes one turn.
"""

from common import CHAIN, REPLY, arguments, listening

import reactor


def begin(conn, data):
    conn.loop.call_soon(go_on, conn, CHAIN - 1)


def go_on(conn, left):
    if left:
        conn.loop.call_soon(go_on, conn, left - 1)
    else:
        conn.write(REPLY)


def main(r):
    listening(r.listen_tcp('127.0.0.1', port, begin).address)


port, _, _ = arguments()
reactor.run(main)
