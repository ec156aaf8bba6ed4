"""`python -m gpt2_orchestration.dashboard`: the web server, the application and its server, until a signal.

One process is enough: it waits for services and computes nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gpt2_orchestration.client.service_client import ServiceError
from gpt2_orchestration.client.services import Services, open_services
from gpt2_orchestration.dashboard import errors
from gpt2_orchestration.dashboard.charts import TensorBoard
from gpt2_orchestration.dashboard.event_reader import EventReader
from gpt2_orchestration.dashboard.live import Changes
from gpt2_orchestration.dashboard.request_guard import Guard
from gpt2_orchestration.dashboard.routes.dead_letters import DeadLetterRoutes
from gpt2_orchestration.dashboard.routes.events import EventRoutes
from gpt2_orchestration.dashboard.routes.health import HealthRoutes, alive
from gpt2_orchestration.dashboard.routes.models import ModelRoutes
from gpt2_orchestration.dashboard.routes.runs import RunRoutes
from gpt2_orchestration.dashboard.settings import DashboardSettings
from gpt2_orchestration.web_server import WebServer

_STATIC = Path(__file__).with_name("static")
_API = "/api/v1"
_STOP_SECONDS = 2
"""Time for requests in flight during shutdown."""


def serve(settings: DashboardSettings) -> None:
    """Serves until SIGINT or SIGTERM."""
    with open_services(settings.client) as services:
        changes = Changes(services)
        config = uvicorn.Config(
            build_app(settings, services, changes),
            host=settings.host,
            port=settings.port,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        _Server(config, changes).run()


class _Server(WebServer):
    """Ends the event streams at shutdown, as they never end by themselves."""

    def __init__(self, config: uvicorn.Config, changes: Changes) -> None:
        super().__init__(config)
        self._changes = changes

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGINT or SIGTERM."""
        self._changes.end()
        super().handle_exit(sig, frame)


def build_app(settings: DashboardSettings, services: Services, changes: Changes) -> Starlette:
    """The application, without a socket.

    Args:
        settings: Configuration.
        services: Open clients; they outlive the application.
        changes: Receives changes while it runs.
    """
    parts = (
        RunRoutes(services, TensorBoard(settings.tensorboard_uri)),
        ModelRoutes(services.clients["registry"]),
        DeadLetterRoutes(settings.kafka_bootstrap_servers, settings.kafka_topic),
        HealthRoutes(services, settings),
        EventRoutes(changes),
    )
    routes: list[BaseRoute] = [
        Route("/healthz", alive),
        Mount(_API, routes=[route for part in parts for route in part.routes()]),
        Mount("/", StaticFiles(directory=_STATIC, html=True)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host_names=settings.host_names)],
        exception_handlers={
            ServiceError: errors.show_service_error,
            HTTPException: errors.show_http_error,
            Exception: errors.show_defect,
        },
        lifespan=_watch_changes(settings, changes),
    )


def _watch_changes(settings: DashboardSettings, changes: Changes) -> Any:
    """Polls and consumes changes while the application runs."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001 - Starlette's signature
        loop = asyncio.get_running_loop()
        reader = EventReader(settings.kafka_bootstrap_servers, settings.kafka_topic, changes, loop)
        reader.start()
        asking = asyncio.create_task(changes.poll_forever())
        yield
        asking.cancel()
        await asyncio.to_thread(reader.stop)

    return lifespan
