"""uvicorn's server with a tick of one second in place of a tenth, which reduces CPU use while idle."""

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

_TICK_SECONDS = 1.0
"""The maximum age of the date in response headers."""


class WebServer(uvicorn.Server):
    """uvicorn's server, woken by its signals and once a second.

    Args:
        config: What to serve, and how.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serves until a signal."""
        self._loop = asyncio.get_running_loop()
        # Of the ticks that uvicorn counts, those with the number 0 renew the date.
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _TICK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes SIGINT or SIGTERM, in the main thread."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leaving.set)
