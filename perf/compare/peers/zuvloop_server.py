"""The asyncio server on zuvloop: the same protocols, so only the loop differs."""

import asyncio

import asyncio_server
import zuvloop

with asyncio.Runner(loop_factory=zuvloop.new_event_loop) as runner:
    runner.run(asyncio_server.serve())
