"""Where the servers of a stack answer, in the form that their clients take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class StackAddresses:
    """Addresses of a running stack."""

    mongodb_uri: str
    kafka_bootstrap_servers: str
    mlflow_uri: str
    tensorboard_uri: str
    exporter: str
    """`host:port` of a gRPC server, as the three below."""
    tokenizer: str
    trainer: str
    registry: str
    dashboard_uri: str
    artifact_root: Path

    @classmethod
    def from_processes(cls, addresses: Mapping[str, str], artifact_root: Path) -> "StackAddresses":
        """Reads them from the `host:port` of each process, by its name."""
        return cls(
            mongodb_uri=f"mongodb://{addresses['mongodb']}",
            kafka_bootstrap_servers=addresses["kafka"],
            mlflow_uri=f"http://{addresses['mlflow']}",
            tensorboard_uri=f"http://{addresses['tensorboard']}",
            exporter=addresses["exporter"],
            tokenizer=addresses["tokenizer"],
            trainer=addresses["trainer"],
            registry=addresses["registry"],
            dashboard_uri=f"http://{addresses['dashboard']}",
            artifact_root=artifact_root,
        )
