"""uvloop: the protocols of the asyncio peer on libuv.

Owns nothing but the choice of the loop. The rule: the same protocols, so that the loop is the only difference.
"""

import asyncio_server
import uvloop

uvloop.run(asyncio_server.serve())
