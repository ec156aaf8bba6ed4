"""The connection to MLflow: made when first needed, with timeouts of seconds, and its errors mapped to ours.

Importing MLflow takes seconds and some 200 MB, so that it is imported by the first call that needs it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import requests

from gpt2_common.errors import FailedPrecondition, NotFound, PipelineError, Unavailable
from gpt2_proxies import web_proxy_note

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults are 120 s and 7 retries with growing pauses: minutes until a caller learns that it is down.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ABSENT_CODES = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
_BUSY_CODES = frozenset(
    {"TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
)
_REFUSAL_CODES = frozenset({"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"})


class MlflowConnection:
    """A client of one MLflow server. May be used by several threads.

    Args:
        uri: Address of the server.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._client: MlflowClient | None = None

    @contextmanager
    def client(self) -> Iterator["MlflowClient"]:
        """Yields the client, and maps its errors.

        Raises:
            NotFound: MLflow does not have what was asked for.
            Unavailable: The server does not answer.
            FailedPrecondition: MLflow refuses.
        """
        client = self._connected()
        from mlflow.exceptions import MlflowException

        try:
            yield client
        except MlflowException as error:
            raise self._mapped(error.error_code, error) from error
        except requests.RequestException as error:
            raise self._unavailable(error) from error

    def _connected(self) -> "MlflowClient":
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> "MlflowClient":
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        # Some of MLflow's functions know no client and use the address of the process.
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _mapped(self, code: str, error: Exception) -> PipelineError:
        if code in _BUSY_CODES or _was_unreachable(error):
            return self._unavailable(error)
        if code in _ABSENT_CODES:
            return NotFound(f"MLflow: {error}")
        if code in _REFUSAL_CODES:
            return FailedPrecondition(
                f"MLflow at {self.uri} refuses the registry ({code}): "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for the service"
            )
        return FailedPrecondition(f"MLflow at {self.uri} refused ({code}): {str(error)[:500]}", mlflow_code=code)

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"MLflow at {self.uri} does not answer ({type(error).__name__}): "
            f"start it, or set GPT2_MLFLOW_TRACKING_URI to its address, and retry{web_proxy_note(self.uri)}",
            mlflow_tracking_uri=self.uri,
        )


def _was_unreachable(error: BaseException) -> bool:
    """Whether a failed request is behind an error; MLflow gives those the code of an internal error."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return "failed with error code 50" in str(error)
    return isinstance(cause, requests.RequestException) or _was_unreachable(cause)
