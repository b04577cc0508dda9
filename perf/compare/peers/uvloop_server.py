"""uvloop: runs the protocols of the asyncio server on libuv, so only the loop differs."""

import asyncio_server
import uvloop

uvloop.run(asyncio_server.serve())
