"""The loop workloads on rloop, through the API that it shares with asyncio."""

import asyncio_loop
import loop_figures
import rloop

loop_figures.main(lambda: asyncio_loop.Loop(rloop.new_event_loop()))
