"""The asyncio server on uvloop: the same protocols run on libuv, so only the loop differs."""

import asyncio_server
import uvloop

uvloop.run(asyncio_server.serve())
