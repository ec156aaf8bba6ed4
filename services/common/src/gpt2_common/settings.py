"""Typed settings from environment variables, read once at start and passed on as frozen values.

Secrets come from variables or from files in GPT2_SECRETS_DIR (a file is named as its variable, in lower case), never
from requests; their values never show in `--help`, logs or errors.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpt2_catalogue import catalogue
from gpt2_contracts.events import DEFAULT_TOPIC

PREFIX = "GPT2_"


class SettingsError(Exception):
    """Settings are missing or wrong; the message names each variable."""


def _as_uri(value: str) -> str:
    """Turns a path into a file URI, and strips the slash at the end of either."""
    if not value:
        raise ValueError("must not be empty")
    return value.rstrip("/") if "://" in value else Path(value).absolute().as_uri()


RootUri = Annotated[str, AfterValidator(_as_uri)]
LocalFolder = Annotated[Path, AfterValidator(Path.absolute)]
"""A folder of this machine, absolute, as its URI is needed too."""


def _as_token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("has a line break or another character that no call can carry: set it to the token alone")
    return value


Token = Annotated[SecretStr, AfterValidator(_as_token)]


def _peer(service: str) -> str:
    return f"Address and port of the {service}, which checks its stages of a run's plan; empty: they are not checked."


class ServiceSettings(BaseSettings):
    """Settings that every service has. Field `x` is the variable GPT2_X."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", validate_default=True)

    listen: str = Field("127.0.0.1:0", description="Address and port to serve gRPC on; port 0 takes a free one.")
    artifact_root: RootUri = Field(".gpt2/artifacts", description="Folder or URI that artifacts are written under.")
    allowed_roots: str = Field(
        "", description="Further folders or URIs that requests may read from, separated by commas."
    )
    scratch_folder: LocalFolder = Field(
        Path(".gpt2/scratch"), description="Local folder for work in progress where the artifact root is remote."
    )
    database_url: str = Field(
        "",
        description="SQLAlchemy URL of the job store, with the password where it needs one. Secret. "
        "Default: SQLite in .gpt2/.",
    )
    kafka_bootstrap_servers: str = Field(
        "localhost:9092", description="Kafka brokers, separated by commas; empty: events stay in the outbox."
    )
    kafka_topic: str = Field(DEFAULT_TOPIC, description="Topic that events are published to.")
    kafka_max_poll_seconds: float = Field(
        300.0,
        ge=1,
        description="Poll timeout of Kafka consumers, in seconds (max.poll.interval.ms).",
    )
    kafka_session_seconds: float = Field(
        15.0,
        ge=6,
        description="Heartbeat timeout of Kafka consumers, in seconds (session.timeout.ms); brokers allow 6 to 1800.",
    )
    kafka_metadata_seconds: float = Field(
        15.0,
        ge=1,
        description="Maximum time until a consumer notices a change of the topic's partitions (metadata.max.age.ms).",
    )
    reconcile_seconds: float = Field(
        60.0,
        ge=1,
        description="Time after a stage's end after which its event is published again, ever less often, "
        "unless the run's next stage is known to have been started.",
    )
    tls_certificate_file: Path | None = Field(None, description="PEM certificate chain; with the key, turns TLS on.")
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities; callers must show a certificate of one."
    )
    clients_file: Path | None = Field(
        None,
        description="File of clients and hashes of the tokens that their calls must carry; `gpt2 clients` writes it.",
    )
    auth_token: Token | None = Field(
        None, description="Bearer token that all callers share; a client's own token does in its place. Secret."
    )
    metrics_listen: str = Field("", description="Address and port of the Prometheus page; empty: none.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Minimum level that is logged.")
    cancel_grace_seconds: float = Field(10.0, ge=0, description="Time for a cancelled job to stop before it is killed.")
    max_attempts: int = Field(
        20, ge=1, description="Consecutive crashes of the service without progress of a job after which the job fails."
    )
    lease_seconds: float = Field(
        30.0,
        ge=2,
        description="Heartbeat timeout after which another replica takes over the jobs and the publishing of this one.",
    )
    instance_id: str = Field(
        "",
        max_length=100,
        description="Name of this replica, the same after a restart: makes its membership in the Kafka group static.",
    )
    git_revision: str = Field(
        "",
        max_length=100,
        description="Commit of the code, where it has no git checkout, as in an image.",
    )
    keep_work_days: float = Field(
        7.0,
        ge=0,
        description="Retention in days of unfinished work of failed and cancelled jobs, to resume them from.",
    )
    queue_limit: int = Field(1000, ge=1, description="Jobs that may be queued; further start calls are refused.")
    exporter_address: str = Field("", description=_peer("exporter"))
    tokenizer_address: str = Field("", description=_peer("tokenizer"))
    trainer_address: str = Field("", description=_peer("trainer"))
    registry_address: str = Field("", description=_peer("registry"))
    client_token: Token | None = Field(None, description="Bearer token for calls of other services. Secret.")
    client_ca_file: Path | None = Field(
        None, description="PEM authorities of the other services; turns TLS on for calls of them."
    )
    client_certificate_file: Path | None = Field(
        None, description="PEM certificate to show the other services, for mutual TLS; with its key."
    )
    client_key_file: Path | None = Field(None, description="PEM private key of that certificate.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("GPT2_TLS_CERTIFICATE_FILE and GPT2_TLS_KEY_FILE go together: set both or neither")
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            raise ValueError("GPT2_TLS_CLIENT_CA_FILE needs GPT2_TLS_CERTIFICATE_FILE and GPT2_TLS_KEY_FILE")
        if (self.client_certificate_file is None) != (self.client_key_file is None):
            raise ValueError("GPT2_CLIENT_CERTIFICATE_FILE and GPT2_CLIENT_KEY_FILE go together: set both or neither")
        return self

    @property
    def roots(self) -> tuple[str, ...]:
        """URIs that artifacts and files may be read under, the artifact root first."""
        further = (part.strip() for part in self.allowed_roots.split(","))
        return (self.artifact_root, *(_as_uri(part) for part in further if part))

    @property
    def peer_addresses(self) -> Mapping[str, str]:
        """Address and port of each service that has one, by its short name."""
        # Services that other packages add to the catalogue have no field here.
        variables = {name: os.environ.get(f"{PREFIX}{name.upper()}_ADDRESS", "") for name in catalogue().services}
        addresses = {name: getattr(self, f"{name}_address", variable) for name, variable in variables.items()}
        return {name: address for name, address in addresses.items() if address}


Settings = TypeVar("Settings", bound=ServiceSettings)


def load_settings(kind: type[Settings]) -> Settings:
    """Reads settings from the environment. Raises SettingsError, which names every variable that is wrong."""
    try:
        return kind(_secrets_dir=os.environ.get(f"{PREFIX}SECRETS_DIR"))  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            name = PREFIX + str(problem["loc"][0]).upper() + ": " if problem["loc"] else ""
            lines.append(name + problem["msg"].removeprefix("Value error, "))
        raise SettingsError("\n".join(lines)) from None


def read_setting_file(name: str, path: Path) -> bytes:
    """Reads the file that a setting names. Raises SettingsError, which names the setting."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{PREFIX}{name}: {path} cannot be read: {error.strerror}") from error


def describe_settings(kind: type[ServiceSettings]) -> str:
    """Lists every variable with its default and meaning, for `--help`."""
    lines = []
    for name, field in kind.model_fields.items():
        default = "" if field.default in (None, "") else f" [default: {field.default}]"
        lines.append(f"  {PREFIX}{name.upper()}{default}\n      {field.description}")
    return "\n".join(lines)
