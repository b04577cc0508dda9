"""The loop workloads on uvloop, through the API that it shares with asyncio."""

import asyncio_loop
import loop_figures
import uvloop

loop_figures.main(lambda: asyncio_loop.Loop(uvloop.new_event_loop()))
