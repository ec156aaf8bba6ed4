"""What a pipeline is built with besides its specification: folders, and what the services say of themselves now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.client import ClientSettings, connect
from gpt2_orchestration.specification import PipelineSpecification, SpecificationError


@dataclass(frozen=True, kw_only=True)
class PostgresMetadata:
    """A PostgreSQL database of ML Metadata, for tasks on several machines.

    It holds no password: libpq, which ML Metadata uses, reads that from PGPASSWORD or PGPASSFILE, so that it cannot
    get into logs and metadata by this way.
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
            raise SpecificationError(f"GPT2_METADATA_URL: is no URL: {error}") from None
        if parts.password is not None:
            raise SpecificationError("GPT2_METADATA_URL: must hold no password: set PGPASSWORD")
        database = unquote(parts.path.lstrip("/"))
        if parts.scheme != "postgresql" or not (parts.hostname and parts.username and database):
            raise SpecificationError("GPT2_METADATA_URL: must be postgresql://USER@HOST:PORT/DATABASE")
        return cls(host=parts.hostname, port=port, user=unquote(parts.username), database=database)


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Where a pipeline keeps its own things."""

    root: Path
    """Folder of TFX's artifacts."""
    metadata: Path | PostgresMetadata
    """SQLite file of ML Metadata, or a database for it."""
    enable_cache: bool = True
    beam_options: tuple[str, ...] = ()
    """Options of Apache Beam, such as `--runner=FlinkRunner`, for runners and components that use Beam."""


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """What the services say now; it goes into the cache keys."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each service's code."""
    snapshot: str = ""
    """State of the data that is exported; empty where the specification reads files."""


def ask_services(specification: PipelineSpecification, client: ClientSettings) -> ServiceFacts:
    """Asks the services for what the cache keys need. Raises ServiceError."""
    versions = {}
    for service in DEFAULT_PORTS:
        with connect(service, client) as caller:
            versions[service] = caller.version()
    snapshot = ""
    if specification.export_corpus is not None:
        snapshot = specification.export_corpus.snapshot
        if not snapshot:
            request = exporter_service_pb2.DescribeSourceRequest(source=specification.export_corpus.source)
            with connect("exporter", client) as exporter:
                snapshot = exporter.call("DescribeSource", request).snapshot
    return ServiceFacts(versions=versions, snapshot=snapshot)
