"""The asyncio server on rloop: the same protocols, so only the loop differs."""

import asyncio

import asyncio_server
import rloop

with asyncio.Runner(loop_factory=rloop.new_event_loop) as runner:
    runner.run(asyncio_server.serve())
