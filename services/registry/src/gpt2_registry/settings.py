"""Settings of the registry: the common ones, the MLflow server, and the label rules."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from gpt2_common.settings import ServiceSettings
from gpt2_registry.label_rules import LabelRules


def _plain_http_uri(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be the address of an MLflow server, such as http://localhost:5000")
    if parts.username or parts.password:
        raise ValueError("must hold no user or password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return value.rstrip("/")


def _label_rules(value: str) -> str:
    LabelRules.parse(value)
    return value


class RegistrySettings(ServiceSettings):
    """Settings of the registry. Credentials for MLflow are read from MLflow's own variables alone."""

    listen: str = Field("127.0.0.1:50054", description="Address and port to serve gRPC on; port 0 takes a free one.")
    mlflow_tracking_uri: Annotated[str, AfterValidator(_plain_http_uri)] = Field(
        "http://localhost:5000",
        description="Address of MLflow's server. User and password, or a token, go into MLflow's own variables.",
    )
    label_rules: Annotated[str, AfterValidator(_label_rules)] = Field(
        "",
        description="Labels that there are and what each asks, as JSON: "
        '{"staging": {}, "production": {"from": ["staging"], "metrics": {"validation_loss": {"max": 3.5}}}}. '
        "Default: any label, for any version.",
    )
