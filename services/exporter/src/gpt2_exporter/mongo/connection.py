"""Connects to MongoDB, and says what went wrong in words that hold no secret.

The driver's own messages can repeat parts of the URI, so none of those about the URI is passed on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure, PyMongoError

from gpt2_common.errors import FailedPrecondition, InvalidRequest, PipelineError, Unavailable
from gpt2_exporter.mongo.extended_json import FILTER_FIELD
from gpt2_exporter.settings import ExporterSettings, connection_setting

_AUTHENTICATION_FAILED = 18
_UNAUTHORIZED = 13

Client = MongoClient


@dataclass(frozen=True, slots=True)
class Server:
    """A connected client, and how to call its server in messages."""

    client: Client
    setting: str
    """Variable that holds its URI."""
    timeout_seconds: float

    @property
    def address(self) -> str:
        """Hosts and ports, without user or password."""
        seeds = sorted(self.client.topology_description.server_descriptions())
        return ",".join(f"{host}:{port}" for host, port in seeds)


@contextmanager
def connect(settings: ExporterSettings, connection: str) -> Iterator[Server]:
    """Opens a connection of the settings; errors of the driver inside become errors for users.

    Args:
        settings: Where the URIs are.
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
    """Says what an error of the driver means for the user, and what to do about it."""
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
    said = (error.details or {}).get("errmsg", type(error).__name__)
    return InvalidRequest([(FILTER_FIELD, f"MongoDB refuses the query (filter or projection): {said}")])


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
        f"the setting {setting} is no usable MongoDB URI such as mongodb://user:password@host:27017/?authSource=admin: "
        "correct it (special characters in user and password must be percent-encoded) and restart the exporter",
        setting=setting,
    )
