"""Settings of a pipeline besides its specification: folders, metadata store, and facts for cache keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings, connect
from gpt2_orchestration.pipelines.specification import PipelineSpecification, SpecificationError


@dataclass(frozen=True, kw_only=True)
class PostgresMetadata:
    """A PostgreSQL database of ML Metadata, for tasks on several machines.

    It has no password, so that none gets into logs and metadata: libpq, which ML Metadata uses, reads PGPASSWORD or
    PGPASSFILE.
    """

    host: str
    port: int
    user: str
    database: str

    @classmethod
    def parse(cls, url: str) -> "PostgresMetadata":
        """Reads `postgresql://USER@HOST:PORT/DATABASE`. Raises SpecificationError."""
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError as error:
            raise SpecificationError(f"GPT2_METADATA_URL: is not a valid URL ({error})") from None
        if parts.password is not None:
            raise SpecificationError("GPT2_METADATA_URL: must not contain a password; set PGPASSWORD instead")
        database = unquote(parts.path.lstrip("/"))
        if parts.scheme != "postgresql" or not (parts.hostname and parts.username and database):
            raise SpecificationError("GPT2_METADATA_URL: must be postgresql://USER@HOST:PORT/DATABASE")
        return cls(host=parts.hostname, port=port, user=unquote(parts.username), database=database)


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Where a pipeline stores its metadata and artifacts."""

    root: Path
    """Folder of TFX's artifacts."""
    metadata: Path | PostgresMetadata
    """SQLite file or PostgreSQL database of ML Metadata."""
    enable_cache: bool = True
    beam_options: tuple[str, ...] = ()
    """Options of Apache Beam, such as `--runner=FlinkRunner`, for runners and components that use Beam."""


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """State of the services that is part of the cache keys."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each service's code."""
    snapshot: str = ""
    """Snapshot of the exported documents; empty where the specification reads files."""


def ask_services(specification: PipelineSpecification, client: ClientSettings) -> ServiceFacts:
    """Queries the services for versions and snapshot. Raises ServiceError."""
    versions = {}
    for service in DEFAULT_PORTS:
        with connect(service, client) as caller:
            versions[service] = caller.version()
    snapshot = ""
    if (export := specification.requests.get("export_corpus")) is not None:
        snapshot = export.snapshot
        if not snapshot:
            request = exporter_service_pb2.DescribeSourceRequest(source=export.source)
            with connect("exporter", client) as exporter:
                snapshot = exporter.call("DescribeSource", request).snapshot
    return ServiceFacts(versions=versions, snapshot=snapshot)
