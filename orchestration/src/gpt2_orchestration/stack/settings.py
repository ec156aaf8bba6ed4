"""Settings of a stack, and the layout of its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gpt2_contracts.events import DEFAULT_TOPIC

SERVICE_PORTS: Mapping[str, int] = MappingProxyType(
    {"exporter": 50051, "tokenizer": 50052, "trainer": 50053, "registry": 50054}
)
"""Default ports of the services."""

DEFAULT_PORTS: Mapping[str, int] = MappingProxyType(
    {
        "mongodb": 27017,
        "kafka": 9092,
        "mlflow": 5000,
        "tensorboard": 6006,
        **SERVICE_PORTS,
        "dashboard": 8090,
    }
)
"""Ports that are taken where they are free."""


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """How a stack is to run."""

    folder: Path = Path(".gpt2")
    """Holds everything: logs, data, artifacts and `stack.json`."""
    ports: Mapping[str, int] = field(default_factory=lambda: DEFAULT_PORTS)
    """Preferred port of each process; where it is taken, a free one is chosen."""
    kafka: bool = False
    """Whether Apache Kafka itself serves, instead of its stand-in. Needs Java and Maven."""
    kafka_topic: str = DEFAULT_TOPIC
    """Topic of the events."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables for the four services, such as GPT2_ALLOWED_ROOTS."""
    start_timeout_seconds: float = 60.0
    """Time for each process to be ready."""
    mlflow_start_timeout_seconds: float = 120.0
    """The same for MLflow, which imports for many seconds."""
    kafka_start_timeout_seconds: float = 300.0
    """The same for Apache Kafka, whose jars are fetched the first time."""
    stop_grace_seconds: float = 60.0
    """Time for each process to stop before it is killed; services suspend their jobs in it."""


@dataclass(frozen=True, slots=True)
class StackFolder:
    """The layout of a stack's folder.

    Args:
        root: The folder, absolute.
    """

    root: Path

    @classmethod
    def create(cls, folder: Path) -> "StackFolder":
        """Makes the folders that are missing."""
        layout = cls(folder.absolute())
        for part in (layout.logs, layout.data, layout.artifacts):
            part.mkdir(parents=True, exist_ok=True)
        return layout

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """Databases."""
        return self.root / "data"

    @property
    def artifacts(self) -> Path:
        """What the jobs make."""
        return self.root / "artifacts"

    @property
    def record(self) -> Path:
        """What runs now, for `status` and `down`."""
        return self.root / "stack.json"

    @property
    def previous_record(self) -> Path:
        """How the stack that ran last has ended."""
        return self.root / "stack.previous.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.root / "stack.lock"

    def log(self, process: str) -> Path:
        """Log of one process."""
        return self.logs / f"{process}.log"
