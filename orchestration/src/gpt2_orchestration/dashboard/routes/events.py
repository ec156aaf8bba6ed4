"""The stream of changes, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from gpt2_orchestration.dashboard.live import Changes

_BEAT_SECONDS = 15.0
_RETRY_MILLIS = 2000


class EventRoutes:
    """The stream.

    Args:
        changes: Receives them.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def routes(self) -> list[Route]:
        """The path, and what answers it."""
        return [Route("/events", self.stream)]

    async def stream(self, request: Request) -> StreamingResponse:  # noqa: ARG002
        """Sends changes until the page is closed."""
        # A proxy that gathers the answer before it passes it on would hold all of it back.
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._changes_as_text(), media_type="text/event-stream", headers=headers)

    async def _changes_as_text(self) -> AsyncIterator[str]:
        async with self._changes.listening() as queue:
            yield f"retry: {_RETRY_MILLIS}\n\n"
            while True:
                try:
                    text = await asyncio.wait_for(queue.get(), _BEAT_SECONDS)
                except TimeoutError:
                    # Finds a connection that is dead, and keeps proxies from closing one that is not.
                    yield ": beat\n\n"
                    continue
                if text is None:
                    return
                yield text
