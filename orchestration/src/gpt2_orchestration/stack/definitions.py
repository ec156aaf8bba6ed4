"""What the nine processes of the stack are: how each is started, where it answers, and how one sees that it does."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gpt2_contracts.events import dead_letter_topic
from gpt2_orchestration.stack.ports import HOST
from gpt2_orchestration.stack.readiness import grpc_answers, http_answers, kafka_answers, mongodb_answers
from gpt2_orchestration.stack.settings import StackFolder, StackSettings
from gpt2_proxies import exempt_loopback

SERVICES = ("exporter", "tokenizer", "trainer", "registry")

_STOP_SERVICES, _STOP_BACKENDS = 0, 1
# What a shell may have set for real services, and what would break the stack's: all four on one metrics port, or TLS
# that neither the checks nor the stack's services speak.
_NOT_INHERITED = (
    "GPT2_METRICS_LISTEN",
    "GPT2_TLS_CERTIFICATE_FILE",
    "GPT2_TLS_KEY_FILE",
    "GPT2_TLS_CLIENT_CA_FILE",
    "GPT2_CLIENT_CA_FILE",
)


@dataclass(frozen=True, kw_only=True)
class ProcessDefinition:
    """One process of a stack."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[str], bool]
    """Whether it answers at an address."""
    address: str = ""
    """Its `host:port`; empty where it chooses that itself."""
    address_file: Path | None = None
    """Where it writes its address, if it chooses that itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """All of its environment, but for `needs`."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Variables that hold the address of another process, by that process's name. It starts when those are known, and
    again when one has changed."""
    start_timeout_seconds: float = 60.0
    stop_grace_seconds: float = 60.0
    stop_order: int = _STOP_BACKENDS
    """Those with a lower number are stopped before those with a higher one."""
    note: str = ""
    """What a user should know of it."""


def define_stack(
    settings: StackSettings, folder: StackFolder, ports: Mapping[str, int]
) -> tuple[ProcessDefinition, ...]:
    """Defines the processes, which listen on the ports given by their names."""
    addresses = {name: f"{HOST}:{port}" for name, port in ports.items()}
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # Freed memory goes back sooner: nine processes share one machine.
    exempt_loopback(inherited)
    environment = {**inherited, "MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}
    backends = (
        _mongodb(addresses["mongodb"], settings, folder, environment),
        _kafka(addresses["kafka"], settings, folder, environment)
        if settings.kafka
        else _kafka_stand_in(addresses["kafka"], settings, folder, environment),
        _mlflow(addresses["mlflow"], settings, folder, environment),
        _tensorboard(addresses["tensorboard"], settings, folder, environment),
    )
    services = (_service(name, addresses, settings, folder, environment) for name in SERVICES)
    definitions = (*backends, *services, _dashboard(addresses, settings, environment))
    return tuple(replace(definition, stop_grace_seconds=settings.stop_grace_seconds) for definition in definitions)


def _mongodb(
    address: str, settings: StackSettings, folder: StackFolder, environment: Mapping[str, str]
) -> ProcessDefinition:
    return ProcessDefinition(
        name="mongodb",
        command=_python("gpt2_orchestration.stack.mongodb", str(folder.data / "mongodb"), address),
        address=address,
        is_ready=mongodb_answers,
        environment=environment,
        start_timeout_seconds=settings.start_timeout_seconds,
        note="stand-in that speaks MongoDB's protocol over SQLite; refuses views, transactions, text search",
    )


def _kafka_stand_in(
    address: str, settings: StackSettings, folder: StackFolder, environment: Mapping[str, str]
) -> ProcessDefinition:
    address_file = folder.data / "kafka.address"
    module = "gpt2_orchestration.stack.kafka_broker"
    return ProcessDefinition(
        name="kafka",
        command=_python(
            module,
            "--listen",
            address,
            str(address_file),
            settings.kafka_topic,
            dead_letter_topic(settings.kafka_topic),
        ),
        address_file=address_file,
        is_ready=kafka_answers,
        environment=environment,
        start_timeout_seconds=settings.start_timeout_seconds,
        note="stand-in that speaks Kafka's protocol; keeps nothing on disk: events are lost when it stops",
    )


def _kafka(
    address: str, settings: StackSettings, folder: StackFolder, environment: Mapping[str, str]
) -> ProcessDefinition:
    return ProcessDefinition(
        name="kafka",
        command=_python("gpt2_orchestration.stack.kafka_server", str(folder.data / "kafka"), address),
        address=address,
        is_ready=kafka_answers,
        environment=environment,
        start_timeout_seconds=settings.kafka_start_timeout_seconds,
        note="Apache Kafka",
    )


def _mlflow(
    address: str, settings: StackSettings, folder: StackFolder, environment: Mapping[str, str]
) -> ProcessDefinition:
    module = "gpt2_registry.mlflow_server"
    return ProcessDefinition(
        name="mlflow",
        command=_python(module, str(folder.data / "mlflow"), *address.split(":")),
        address=address,
        is_ready=partial(http_answers, path="/health"),
        environment=environment,
        start_timeout_seconds=settings.mlflow_start_timeout_seconds,
    )


def _tensorboard(
    address: str, settings: StackSettings, folder: StackFolder, environment: Mapping[str, str]
) -> ProcessDefinition:
    module = "gpt2_trainer.tensorboard_server"
    return ProcessDefinition(
        name="tensorboard",
        command=_python(module, "--logdir", str(folder.artifacts), *_listen(address)),
        address=address,
        is_ready=partial(http_answers, path="/data/environment"),
        environment=environment,
        start_timeout_seconds=settings.start_timeout_seconds,
    )


def _service(
    name: str,
    addresses: Mapping[str, str],
    settings: StackSettings,
    folder: StackFolder,
    environment: Mapping[str, str],
) -> ProcessDefinition:
    own = {
        "GPT2_LISTEN": addresses[name],
        "GPT2_ARTIFACT_ROOT": str(folder.artifacts),
        "GPT2_SCRATCH_FOLDER": str(folder.data / "scratch" / name),
        "GPT2_DATABASE_URL": f"sqlite:///{folder.data / name}.db",
        "GPT2_KAFKA_TOPIC": settings.kafka_topic,
        "GPT2_INSTANCE_ID": "stack",
        "GPT2_MONGODB_URI": f"mongodb://{addresses['mongodb']}",
        "GPT2_MLFLOW_TRACKING_URI": f"http://{addresses['mlflow']}",
        **_service_addresses(addresses),
    }
    return ProcessDefinition(
        name=name,
        command=_python(f"gpt2_{name}"),
        address=addresses[name],
        is_ready=grpc_answers,
        environment={**environment, **settings.environment, **own},
        needs={"GPT2_KAFKA_BOOTSTRAP_SERVERS": "kafka"},
        start_timeout_seconds=settings.start_timeout_seconds,
        stop_order=_STOP_SERVICES,
    )


def _dashboard(
    addresses: Mapping[str, str], settings: StackSettings, environment: Mapping[str, str]
) -> ProcessDefinition:
    own = {
        "GPT2_DASHBOARD_LISTEN": addresses["dashboard"],
        "GPT2_KAFKA_TOPIC": settings.kafka_topic,
        "GPT2_TENSORBOARD_URI": f"http://{addresses['tensorboard']}",
        "GPT2_DASHBOARD_TENSORBOARD_LINK": f"http://{addresses['tensorboard']}",
        "GPT2_DASHBOARD_MLFLOW_LINK": f"http://{addresses['mlflow']}",
        **_service_addresses(addresses),
    }
    return ProcessDefinition(
        name="dashboard",
        command=_python("gpt2_orchestration.dashboard"),
        address=addresses["dashboard"],
        is_ready=partial(http_answers, path="/healthz"),
        environment={**environment, **own},
        needs={"GPT2_KAFKA_BOOTSTRAP_SERVERS": "kafka"},
        start_timeout_seconds=settings.start_timeout_seconds,
        stop_order=_STOP_SERVICES,
    )


def _service_addresses(addresses: Mapping[str, str]) -> Mapping[str, str]:
    return {f"GPT2_{name.upper()}_ADDRESS": addresses[name] for name in SERVICES}


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _listen(address: str) -> tuple[str, ...]:
    host, _, port = address.partition(":")
    return ("--host", host, "--port", port)
