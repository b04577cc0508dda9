"""The loop workloads on zuvloop, through the API that it shares with asyncio."""

import asyncio_loop
import loop_figures
import zuvloop

loop_figures.main(lambda: asyncio_loop.Loop(zuvloop.new_event_loop()))
