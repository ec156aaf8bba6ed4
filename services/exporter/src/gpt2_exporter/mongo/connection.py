"""Connects to MongoDB, explains its errors without secrets, and retries transient ones.

Messages of the driver about the URI are not passed on, as they can repeat parts of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pymongo import MongoClient
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    CursorNotFound,
    OperationFailure,
    PyMongoError,
)

from gpt2_common.errors import FailedPrecondition, InvalidRequest, PipelineError, Unavailable
from gpt2_exporter.mongo.extended_json import FILTER_FIELD
from gpt2_exporter.settings import ExporterSettings, connection_setting

_AUTHENTICATION_FAILED = 18
_UNAUTHORIZED = 13
MAX_CONSECUTIVE_FAILURES = 5
_FIRST_PAUSE_SECONDS = 0.2
# CursorNotFound, QueryPlanKilled, NoSuchSession, CursorKilled, Interrupted, InterruptedAtShutdown.
_LOST_CURSOR_CODES = frozenset({43, 175, 206, 237, 11601, 11600})
Result = TypeVar("Result")

Client = MongoClient


@dataclass(frozen=True, slots=True)
class Server:
    """A connected client, and how messages name its server."""

    client: Client
    setting: str
    """Environment variable of its URI."""
    timeout_seconds: float

    @property
    def address(self) -> str:
        """Hosts and ports, without user and password."""
        seeds = sorted(self.client.topology_description.server_descriptions())
        return ",".join(f"{host}:{port}" for host, port in seeds)


@contextmanager
def connect(settings: ExporterSettings, connection: str) -> Iterator[Server]:
    """Opens a connection of the settings; translates errors of the driver inside the `with` into errors for users.

    Args:
        settings: The settings with the URIs.
        connection: Name of the connection; empty for the default one.

    Raises:
        Unavailable: No server answers.
        FailedPrecondition: The URI is wrong, or the server refuses the user.
        InvalidRequest: There is no such connection, or the server refuses the query.
    """
    setting = connection_setting(connection)
    uri = settings.connection_uri(connection)
    if uri is None:
        raise InvalidRequest([("source.connection", f"is not configured: set {setting} where the exporter runs")])
    client = _open(uri.get_secret_value(), setting, settings.mongodb_timeout_seconds)
    server = Server(client, setting, settings.mongodb_timeout_seconds)
    try:
        yield server
    except PyMongoError as error:
        raise explain(error, server) from error
    finally:
        client.close()


def explain(error: PyMongoError, server: Server) -> PipelineError:
    """Returns the error for users that explains an error of the driver, and what to do about it."""
    if isinstance(error, ConnectionFailure):
        return Unavailable(
            f"MongoDB at {server.address} (setting {server.setting}) does not answer within "
            f"{server.timeout_seconds:g} s: check the address, the network and that the server runs, then retry",
            setting=server.setting,
        )
    if isinstance(error, OperationFailure):
        return _explain_refusal(error, server)
    if isinstance(error, ConfigurationError):
        return _wrong_uri(server.setting)
    return Unavailable(
        f"MongoDB at {server.address} (setting {server.setting}) failed ({type(error).__name__}): retry",
        setting=server.setting,
    )


def _explain_refusal(error: OperationFailure, server: Server) -> PipelineError:
    if error.code in (_AUTHENTICATION_FAILED, _UNAUTHORIZED):
        what = "refuses user and password" if error.code == _AUTHENTICATION_FAILED else "does not let this user read"
        return FailedPrecondition(
            f"MongoDB at {server.address} {what}: correct the user, the password, authSource or the roles behind "
            f"the setting {server.setting}",
            setting=server.setting,
        )
    reason = (error.details or {}).get("errmsg", type(error).__name__)
    return InvalidRequest([(FILTER_FIELD, f"MongoDB refuses the query (filter or projection): {reason}")])


def _open(uri: str, setting: str, timeout_seconds: float) -> Client:
    milliseconds = int(timeout_seconds * 1000)
    try:
        return MongoClient(
            uri,
            appname="gpt2-exporter",
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
        )
    except (PyMongoError, ValueError, TypeError, OSError):
        # `from None`: the cause's text can hold the password, and tracebacks are logged.
        raise _wrong_uri(setting) from None


def _wrong_uri(setting: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the setting {setting} is not a valid MongoDB URI, as mongodb://user:password@host:27017/?authSource=admin: "
        "correct it (special characters in user and password must be percent-encoded) and restart the exporter",
        setting=setting,
    )


def is_transient(error: PyMongoError) -> bool:
    """Whether another attempt can succeed."""
    if isinstance(error, AutoReconnect | CursorNotFound):
        return True
    return isinstance(error, OperationFailure) and error.code in _LOST_CURSOR_CODES


def pause_seconds(failures: int) -> float:
    """Returns how long to wait after so many consecutive failures."""
    return _FIRST_PAUSE_SECONDS * 2.0**failures


def retried(call: Callable[[], Result], pause: Callable[[float], None]) -> Result:
    """Returns the result of a call, repeating it while its errors are transient.

    Args:
        call: The call; a retry repeats all of it.
        pause: Waits a number of seconds.
    """
    failures = 0
    while True:
        try:
            return call()
        except PyMongoError as error:
            failures += 1
            if not is_transient(error) or failures >= MAX_CONSECUTIVE_FAILURES:
                raise
        pause(pause_seconds(failures))
