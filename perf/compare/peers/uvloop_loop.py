"""uvloop's own machinery, by the names that it shares with asyncio.

Owns nothing but the choice of the loop. The rule: as loop_figures asks; see there.
"""

import asyncio_loop
import loop_figures
import uvloop

loop_figures.main(lambda: asyncio_loop.Loop(uvloop.new_event_loop()))
