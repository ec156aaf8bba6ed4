"""Settings of the exporter: the common ones, and the MongoDB servers that it may read from."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, SecretStr

from gpt2_common.settings import PREFIX, ServiceSettings

DEFAULT_CONNECTION = f"{PREFIX}MONGODB_URI"
_NAMED_CONNECTION = f"{DEFAULT_CONNECTION}_"


class ExporterSettings(ServiceSettings):
    """Settings of the exporter."""

    listen: str = Field("127.0.0.1:50051", description="Address and port to serve gRPC on; port 0 takes a free one.")
    mongodb_uri: SecretStr = Field(
        SecretStr("mongodb://localhost:27017"),
        description="Address of MongoDB, with user and password where it needs them. Secret. "
        f"{_NAMED_CONNECTION}<NAME> adds a further server, which requests call by that name.",
    )
    mongodb_timeout_seconds: float = Field(
        10.0, gt=0, description="Time to find a MongoDB server that answers before the work fails."
    )
    mongodb_readers: int = Field(
        2,
        ge=1,
        le=64,
        description="Parts of a collection that an export reads at once. The corpus is the same for all.",
    )
    corpus_shard_bytes: int = Field(
        64 << 20, ge=1, description="Bytes of text after which a corpus begins its next Parquet file."
    )
    _named_uris: dict[str, SecretStr] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        """Reads the named connections, whose variables the fields cannot list."""
        super().model_post_init(context)
        self._named_uris.update(_read_named_uris())

    @property
    def connections(self) -> tuple[str, ...]:
        """Names of the named connections, in upper case."""
        return tuple(sorted(self._named_uris))

    def connection_uri(self, connection: str) -> SecretStr | None:
        """Returns the URI of a connection, the default one for an empty name; None where there is none of that name."""
        return self._named_uris.get(connection.upper()) if connection else self.mongodb_uri


def connection_setting(connection: str) -> str:
    """Returns the environment variable of a connection's URI, for messages."""
    return _NAMED_CONNECTION + connection.upper() if connection else DEFAULT_CONNECTION


def _read_named_uris() -> dict[str, SecretStr]:
    """Reads the variables and the files of the secrets folder that name a connection; variables take precedence."""
    values: dict[str, str] = {}
    folder = os.environ.get(f"{PREFIX}SECRETS_DIR")
    if folder:
        paths = Path(folder).glob(f"{_NAMED_CONNECTION.lower()}?*")
        values.update({path.name.upper(): path.read_text(encoding="utf-8").strip() for path in paths if path.is_file()})
    values.update({name.upper(): value for name, value in os.environ.items()})
    return {
        name.removeprefix(_NAMED_CONNECTION): SecretStr(value)
        for name, value in values.items()
        if name.startswith(_NAMED_CONNECTION) and name != _NAMED_CONNECTION
    }
