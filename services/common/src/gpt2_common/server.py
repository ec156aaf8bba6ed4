"""Starts and stops a service: its gRPC server, its jobs and its events.

Every service is a ServiceDefinition and a `__main__` that calls `main` with it.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import grpc
import grpc.aio
import sqlalchemy as sql
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from gpt2.jobs.v1 import jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.database import database_url, open_database
from gpt2_common.events.consumer import EventConsumer, Subscription
from gpt2_common.events.outbox import count_waiting
from gpt2_common.events.relay import OutboxRelay
from gpt2_common.interceptor import CallInterceptor
from gpt2_common.jobs.attempt import Launcher
from gpt2_common.jobs.child import child_processes
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.manager import JobManager, Starter
from gpt2_common.jobs.service import JobsServicer
from gpt2_common.jobs.stages import StageStarter
from gpt2_common.jobs.store import JobStore
from gpt2_common.jobs.unfinished import WorkSweeper
from gpt2_common.lease import Lease
from gpt2_common.logs import configure_logs
from gpt2_common.metrics import ServiceMetrics
from gpt2_common.proxies import exempt_loopback
from gpt2_common.replica import Replica
from gpt2_common.settings import Settings, SettingsError, describe_settings, load_settings

_log = logging.getLogger(__name__)

EXIT_SETTINGS = 78
"""Exit status when a setting is missing, wrong, or names what cannot be used (EX_CONFIG of sysexits.h)."""

_CALL_GRACE_SECONDS = 5.0
_CONSUMER_GRACE_SECONDS = 5.0
_SWEEPER_GRACE_SECONDS = 2.0
_DAY_SECONDS = 86_400.0
_JOBS_SERVICE = jobs_service_pb2.DESCRIPTOR.services_by_name["JobsService"].full_name


@dataclass(frozen=True, kw_only=True)
class ServiceSurroundings(Generic[Settings]):
    """What a service's own servicer is built with."""

    settings: Settings
    jobs: JobManager
    artifacts: ArtifactStore
    on_stop: ExitStack
    """Takes what is to be closed when the service stops."""
    engine: sql.Engine
    """Database of jobs and outgoing events."""
    wake_relay: Callable[[], None]
    """Says that an event was added to the outbox."""


@dataclass(frozen=True, kw_only=True)
class ServiceDefinition(Generic[Settings]):
    """All that makes one service."""

    name: str
    """Short name: exporter, tokenizer, trainer or registry."""
    grpc_service: str
    """Full name of its gRPC service."""
    settings: type[Settings]
    kinds: Sequence[JobKind]
    add_servicer: Callable[[ServiceSurroundings[Settings], grpc.aio.Server], object]
    """Adds its own servicer to the server, and returns it: events start stages by its methods, as calls do."""
    launcher: Callable[[Settings], Launcher] = child_processes
    """Decides by the settings where attempts of jobs run."""


def main(definition: ServiceDefinition[Any]) -> None:
    """Entry point of a service's process."""
    parser = argparse.ArgumentParser(
        prog=f"python -m gpt2_{definition.name}",
        description=f"Serves {definition.grpc_service} and gpt2.jobs.v1.JobsService over gRPC.",
        epilog="environment variables:\n" + describe_settings(definition.settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    exempt_loopback()
    try:
        settings = load_settings(definition.settings)
        configure_logs(definition.name, settings.log_level)
        asyncio.run(serve(definition, settings))
    except SettingsError as error:
        print(f"gpt2_{definition.name}: {error}", file=sys.stderr)
        sys.exit(EXIT_SETTINGS)


async def serve(definition: ServiceDefinition[Settings], settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises SettingsError when it cannot begin."""
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    with ExitStack() as stack:
        metrics = ServiceMetrics()
        surroundings = _open_surroundings(definition, settings, metrics, stack)
        jobs = surroundings.jobs
        health = HealthServicer()
        server, port, starters = _create_server(definition, surroundings, metrics, health)
        await server.start()
        for served in ("", definition.grpc_service, _JOBS_SERVICE):
            await health.set(served, health_pb2.HealthCheckResponse.SERVING)
        running = asyncio.create_task(jobs.run())
        consumer = _start_consumer(definition.name, settings, jobs, starters)
        _log.info("%s serves on port %d", definition.name, port, extra={"port": port})
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("%s stops", definition.name)
        await _stop(health, jobs, consumer, server)
        await running


def _open_surroundings(
    definition: ServiceDefinition[Settings], settings: Settings, metrics: ServiceMetrics, stack: ExitStack
) -> ServiceSurroundings[Settings]:
    """Opens the database, and what lives on it: the jobs, and the relay of their events."""
    engine = stack.enter_context(open_database(database_url(definition.name, settings)))
    replica = Replica.this()
    relay = _start_relay(definition.name, settings, engine, replica, stack)
    store = JobStore(engine, definition.name, settings.queue_limit, replica, settings.lease_seconds)
    jobs = JobManager(store, definition.kinds, settings, relay.wake, definition.launcher(settings))
    metrics.watch(jobs.running_jobs, partial(count_waiting, engine, f"/gpt2/{definition.name}"))
    artifacts = ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder)
    sweeper = WorkSweeper(store, artifacts.work, settings.keep_work_days * _DAY_SECONDS)
    sweeper.start()
    stack.callback(sweeper.stop, _SWEEPER_GRACE_SECONDS)
    if settings.metrics_listen:
        stack.callback(metrics.serve(settings.metrics_listen))
    return ServiceSurroundings(
        settings=settings,
        jobs=jobs,
        artifacts=artifacts,
        on_stop=stack,
        engine=engine,
        wake_relay=relay.wake,
    )


async def _stop(
    health: HealthServicer, jobs: JobManager, consumer: EventConsumer | None, server: grpc.aio.Server
) -> None:
    """Stops in good order: says so, takes nothing more, puts the jobs at work aside, lets calls end."""
    await health.enter_graceful_shutdown()
    jobs.close()
    if consumer is not None:
        await asyncio.to_thread(consumer.stop, _CONSUMER_GRACE_SECONDS)
    await jobs.stop()
    await server.stop(_CALL_GRACE_SECONDS)


def _start_relay(name: str, settings: Settings, engine: sql.Engine, replica: Replica, stack: ExitStack) -> OutboxRelay:
    source = f"/gpt2/{name}"
    lease = Lease(engine, f"relay {source}", replica, settings.lease_seconds)
    relay = OutboxRelay(engine, source, settings.kafka_bootstrap_servers, settings.kafka_topic, lease)
    if settings.kafka_bootstrap_servers:
        relay.start()
        stack.callback(relay.stop, 10.0)
    return relay


def _start_consumer(
    name: str, settings: Settings, jobs: JobManager, starters: Mapping[str, Starter]
) -> EventConsumer | None:
    if not settings.kafka_bootstrap_servers:
        return None
    subscription = Subscription(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        topic=settings.kafka_topic,
        group=f"gpt2.{name}",
        instance_id=settings.instance_id and f"gpt2.{name}.{settings.instance_id}",
        max_poll_seconds=settings.kafka_max_poll_seconds,
    )
    consumer = EventConsumer(subscription, StageStarter(jobs, starters, asyncio.get_running_loop()).handle)
    consumer.start()
    return consumer


def _create_server(
    definition: ServiceDefinition[Settings],
    surroundings: ServiceSurroundings[Settings],
    metrics: ServiceMetrics,
    health: HealthServicer,
) -> tuple[grpc.aio.Server, int, Mapping[str, Starter]]:
    settings = surroundings.settings
    token = settings.auth_token.get_secret_value() if settings.auth_token else None
    server = grpc.aio.server(
        interceptors=[CallInterceptor(metrics, token)],
        # Without this, a second server on the same port would share its calls instead of failing.
        options=[("grpc.so_reuseport", 0)],
    )
    servicer = definition.add_servicer(surroundings, server)
    starters = {kind.name: _starter(servicer, kind.name) for kind in definition.kinds}
    jobs = JobsServicer(definition.name, surroundings.jobs, starters)
    jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(jobs, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (definition.grpc_service, _JOBS_SERVICE)
    reflection.enable_server_reflection(
        (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    return server, _bind(server, settings), starters


def _starter(servicer: object, name: str) -> Starter:
    """A start call as events make it: the servicer's own method, without a context, which start calls do not use."""
    method = getattr(servicer, name)
    return lambda request: method(request, None)


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        credentials = _credentials(settings)
        if credentials is None:
            return server.add_insecure_port(settings.listen)
        return server.add_secure_port(settings.listen, credentials)
    except RuntimeError as error:
        raise SettingsError(
            f"GPT2_LISTEN: {settings.listen} cannot be used: another process has the port, or the address is wrong; "
            "choose another"
        ) from error


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    authority = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [(_read("TLS_KEY_FILE", settings.tls_key_file), _read("TLS_CERTIFICATE_FILE", settings.tls_certificate_file))],
        root_certificates=_read("TLS_CLIENT_CA_FILE", authority) if authority else None,
        require_client_auth=authority is not None,
    )


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"GPT2_{name}: {path} cannot be read: {error.strerror}") from error
