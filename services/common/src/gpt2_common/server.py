"""Starts and stops a service: its gRPC server, its jobs and its events.

Every service is a ServiceDefinition and a `__main__` that calls `main` with it.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Generic

import grpc
import grpc.aio
import sqlalchemy as sql
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_catalogue import Stage, catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.authentication import open_authenticator
from gpt2_common.database import database_url, open_database
from gpt2_common.errors import PipelineError
from gpt2_common.events.consumer import EventConsumer, Subscription
from gpt2_common.events.relay import OutboxRelay
from gpt2_common.interceptor import CallInterceptor
from gpt2_common.jobs.attempt import Launcher
from gpt2_common.jobs.checks import RequestChecks, StageChecks
from gpt2_common.jobs.child_process_attempt import child_processes
from gpt2_common.jobs.definition import JobKind, Work
from gpt2_common.jobs.event_monitor import EventMonitor
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.reconciler import Reconciler, ask_peers
from gpt2_common.jobs.run_upgrade import complete_runs
from gpt2_common.jobs.service import JobsServicer
from gpt2_common.jobs.stage_starter import StageStarter
from gpt2_common.jobs.store import FindDigest, JobStore
from gpt2_common.jobs.sweeper import WorkSweeper
from gpt2_common.lease import Lease, LeaseHolder
from gpt2_common.logs import configure_logs
from gpt2_common.metrics import ServiceMetrics
from gpt2_common.peers import Peers
from gpt2_common.readiness import Readiness
from gpt2_common.settings import Settings, SettingsError, describe_settings, load_settings, read_setting_file
from gpt2_contracts.events import source_of
from gpt2_proxies import exempt_loopback

_log = logging.getLogger(__name__)

EXIT_SETTINGS = 78
"""Exit status when a setting is missing, wrong, or names what cannot be used (EX_CONFIG of sysexits.h)."""

_CALL_GRACE_SECONDS = 5.0
_CONSUMER_GRACE_SECONDS = 5.0
_SWEEPER_GRACE_SECONDS = 2.0
_RECONCILER_GRACE_SECONDS = 2.0
_DAY_SECONDS = 86_400.0
_JOBS_SERVICE = jobs_service_pb2.DESCRIPTOR.services_by_name["JobsService"].full_name


@dataclass(frozen=True, kw_only=True)
class ServiceContext(Generic[Settings]):
    """What a service's own servicer is built from."""

    settings: Settings
    jobs: JobManager
    artifacts: ArtifactStore
    on_stop: AsyncExitStack
    """Closed when the service stops."""
    engine: sql.Engine
    """Database of jobs and outgoing events."""
    wake_relay: Callable[[], None]
    """To be called when an event was added to the outbox."""
    peers: Peers
    """The other services."""
    reconciler: Reconciler
    events: EventMonitor


@dataclass(frozen=True, kw_only=True)
class ServiceDefinition(Generic[Settings]):
    """Defines a service."""

    name: str
    """Short name, such as `trainer`."""
    grpc_service: ServiceDescriptor
    """Its own gRPC service. The start calls in it need no servicer: each starts a job of its stage."""
    settings: type[Settings]
    work: Mapping[str, Work]
    """By name of the start call."""
    checks: Callable[[Settings, ArtifactStore], Mapping[str, StageChecks]] = lambda _settings, _artifacts: {}
    """The service's own checks of requests, by name of the start call."""
    servicer: Callable[[ServiceContext[Settings]], object] = lambda _: None
    """Makes the object whose methods answer the calls that are no start calls."""
    launcher: Callable[[Settings], Launcher] = child_processes
    """Chooses by the settings where attempts of jobs run."""

    @property
    def kinds(self) -> Sequence[JobKind]:
        """The kinds of job that it runs."""
        stages = catalogue().stages
        return [JobKind(stage=stages[name], work=work, settings=self.settings) for name, work in self.work.items()]


def main(definition: ServiceDefinition[Any]) -> None:
    """Entry point of a service's process."""
    parser = argparse.ArgumentParser(
        prog=f"python -m gpt2_{definition.name}",
        description=f"Serves {definition.grpc_service.full_name} and gpt2.jobs.v1.JobsService over gRPC.",
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
    async with AsyncExitStack() as stack:
        metrics = ServiceMetrics()
        context = _open_context(definition, settings, metrics, stack)
        jobs = context.jobs
        health = health_aio.HealthServicer()
        server, port = _create_server(definition, context, metrics, health)
        readiness = Readiness(health, (definition.grpc_service.full_name, _JOBS_SERVICE), context.artifacts.work)
        await readiness.update()
        await server.start()
        checking = asyncio.create_task(readiness.run())
        running = asyncio.create_task(jobs.run())
        consumer = _start_consumer(definition.name, settings, jobs, context.events)
        _log.info("%s serves on port %d", definition.name, port, extra={"port": port})
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("%s stops", definition.name)
        checking.cancel()
        await _stop(health, jobs, consumer, server)
        # It asks peers by this loop, which the end of the context would block.
        await asyncio.to_thread(context.reconciler.stop, _RECONCILER_GRACE_SECONDS)
        await running
        await context.peers.close()


def _open_context(
    definition: ServiceDefinition[Settings], settings: Settings, metrics: ServiceMetrics, stack: AsyncExitStack
) -> ServiceContext[Settings]:
    """Opens the database, the jobs in it, and the relay of their events."""
    engine = stack.enter_context(open_database(database_url(definition.name, settings)))
    complete_runs(engine, definition.name)
    holder = LeaseHolder.this_process(settings.lease_seconds)
    relay = _start_relay(definition.name, settings, engine, holder, stack)
    artifacts = ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder)
    find_digest = _digest_finder(artifacts)
    store = JobStore(engine, definition.name, settings.queue_limit, holder, find_digest)
    peers = Peers(settings)
    kinds = definition.kinds
    checks = RequestChecks([kind.stage for kind in kinds], definition.checks(settings, artifacts), peers, artifacts)
    jobs = JobManager(store, kinds, settings, relay.wake, definition.launcher(settings), checks)
    events = EventMonitor(engine, definition.name, settings)
    metrics.watch(jobs.running_jobs, events)
    sweeper = WorkSweeper(store, artifacts.work, settings.keep_work_days * _DAY_SECONDS)
    sweeper.start()
    stack.callback(sweeper.stop, _SWEEPER_GRACE_SECONDS)
    if settings.metrics_listen:
        stack.callback(metrics.serve(settings.metrics_listen))
    return ServiceContext(
        settings=settings,
        jobs=jobs,
        artifacts=artifacts,
        on_stop=stack,
        engine=engine,
        wake_relay=relay.wake,
        peers=peers,
        reconciler=_start_reconciler(settings, jobs, peers, holder, relay),
        events=events,
    )


def _digest_finder(artifacts: ArtifactStore) -> FindDigest:
    """Reads digests of artifacts from their manifests."""

    def find(artifact: artifact_pb2.Artifact) -> str:
        try:
            return artifacts.read_manifest(artifact.name, artifact.uri, artifact.kind)[1].digest
        except (PipelineError, OSError) as error:
            # The job has read it; that it is gone since must not fail the job.
            _log.warning("the digest of the input %s is not recorded: %s", artifact.name, error)
            return ""

    return find


async def _stop(
    health: health_aio.HealthServicer, jobs: JobManager, consumer: EventConsumer | None, server: grpc.aio.Server
) -> None:
    """Shuts down gracefully: stops accepting, suspends the jobs that run, drains the calls."""
    await health.enter_graceful_shutdown()
    jobs.close()
    if consumer is not None:
        await asyncio.to_thread(consumer.stop, _CONSUMER_GRACE_SECONDS)
    await jobs.stop()
    await server.stop(_CALL_GRACE_SECONDS)


def _start_relay(
    name: str, settings: Settings, engine: sql.Engine, holder: LeaseHolder, stack: AsyncExitStack
) -> OutboxRelay:
    source = source_of(name)
    lease = Lease(engine, f"relay {source}", holder)
    relay = OutboxRelay(engine, source, settings.kafka_bootstrap_servers, settings.kafka_topic, lease)
    if settings.kafka_bootstrap_servers:
        relay.start()
        stack.callback(relay.stop, 10.0)
    return relay


def _start_reconciler(
    settings: Settings, jobs: JobManager, peers: Peers, holder: LeaseHolder, relay: OutboxRelay
) -> Reconciler:
    store = jobs.store
    lease = Lease(store.engine, f"reconciler {store.service}", holder)
    ask_peer = ask_peers(peers, asyncio.get_running_loop())
    reconciler = Reconciler(store, jobs.kinds, ask_peer, settings.reconcile_seconds, lease, relay.wake)
    if settings.kafka_bootstrap_servers:
        reconciler.start()
    return reconciler


def _start_consumer(name: str, settings: Settings, jobs: JobManager, events: EventMonitor) -> EventConsumer | None:
    if not settings.kafka_bootstrap_servers:
        return None
    subscription = Subscription(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        topic=settings.kafka_topic,
        group=f"gpt2.{name}",
        instance_id=settings.instance_id and f"gpt2.{name}.{settings.instance_id}",
        max_poll_seconds=settings.kafka_max_poll_seconds,
        session_seconds=settings.kafka_session_seconds,
        metadata_seconds=settings.kafka_metadata_seconds,
    )
    consumer = EventConsumer(subscription, StageStarter(jobs, asyncio.get_running_loop()).handle)
    consumer.start()
    events.watch(consumer)
    return consumer


def _create_server(
    definition: ServiceDefinition[Settings],
    context: ServiceContext[Settings],
    metrics: ServiceMetrics,
    health: health_aio.HealthServicer,
) -> tuple[grpc.aio.Server, int]:
    settings = context.settings
    server = grpc.aio.server(
        interceptors=[CallInterceptor(metrics, open_authenticator(settings))],
        # Without this, a second server on the same port would share its calls instead of failing.
        options=[("grpc.so_reuseport", 0)],
    )
    _add_service(server, definition, context)
    jobs = JobsServicer(definition.name, context.jobs, context.reconciler, context.events)
    jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(jobs, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (definition.grpc_service.full_name, _JOBS_SERVICE)
    reflection.enable_server_reflection(
        (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    return server, _bind(server, settings)


def _add_service(
    server: grpc.aio.Server, definition: ServiceDefinition[Settings], context: ServiceContext[Settings]
) -> None:
    """Adds the service's own calls: start calls as its work has them, the others as methods of its servicer.

    A call that neither has is answered with UNIMPLEMENTED.
    """
    servicer = definition.servicer(context)
    handlers = {}
    for method in definition.grpc_service.methods:
        answer: Any = getattr(servicer, method.name, None)
        if method.name in definition.work:
            answer = _start_call(context.jobs, catalogue().stages[method.name])
        elif answer is None:
            continue
        streams = method.server_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        handlers[method.name] = make(answer, request.FromString, response.SerializeToString)
    handler = grpc.method_handlers_generic_handler(definition.grpc_service.full_name, handlers)
    server.add_generic_rpc_handlers([handler])


def _start_call(jobs: JobManager, stage: Stage) -> Callable[[Any, Any], Awaitable[Any]]:
    """A start call: starts the job, and answers with it."""

    async def start(request: Any, context: Any) -> Any:  # noqa: ARG001
        response: Any = stage.response
        return response(job=await jobs.start(stage.name, request))

    return start


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
        [
            (
                read_setting_file("TLS_KEY_FILE", settings.tls_key_file),
                read_setting_file("TLS_CERTIFICATE_FILE", settings.tls_certificate_file),
            )
        ],
        root_certificates=read_setting_file("TLS_CLIENT_CA_FILE", authority) if authority else None,
        require_client_auth=authority is not None,
    )
