"""uvloop: the protocols of the asyncio server on libuv, so the loop is the only difference."""

import asyncio_server
import uvloop

uvloop.run(asyncio_server.serve())
