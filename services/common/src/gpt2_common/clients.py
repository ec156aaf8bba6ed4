"""The clients file: names of clients, and SHA-256 hashes of their tokens. Read by services, written by `gpt2 clients`.

    # name       how it proves its name    rights
    ann          sha256:5e884898da28...
    dashboard    sha256:1c8bfe8f801d...    may-act-for-others
    airflow      certificate

A name may have several lines, each with another token. Tokens are 256 random bits, which nobody finds by trying: a slow
hash, as passwords need, would protect nothing and cost each call its time.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2_common.durable import part_of, replace_durable, write_durable
from gpt2_common.identity import is_name

MAY_ACT_FOR_OTHERS = "may-act-for-others"
CERTIFICATE = "certificate"

_HEADER = "# Clients of the services: name, proof of the name, rights. Written by `gpt2 clients`.\n"
_TOKEN_PREFIX = "gpt2_"  # Scanners for leaked secrets look for such prefixes.
_TOKEN_BYTES = 32
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_ID_LENGTH = 12
_NAME_RULE = "a name has 1 to 200 printable characters without spaces or parentheses, and is not 'unauthenticated'"

_log = logging.getLogger(__name__)


class ClientsFileError(ValueError):
    """The clients file is wrong or cannot be read; the message has the place and the remedy, and quotes no content."""


class UnknownClient(ClientsFileError):
    """The file has no such client, or no such token of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """One line of the file."""

    name: str
    proof: str
    """`sha256:` and the hash of a token in hexadecimal digits, or `certificate`."""
    may_act_for_others: bool = False

    @property
    def token_id(self) -> str:
        """The first digits of the token's hash, which tell tokens of one name apart; empty for a certificate."""
        return "" if self.proof == CERTIFICATE else self.proof.removeprefix("sha256:")[:_ID_LENGTH]

    def line(self) -> str:
        """The client as the file has it."""
        return " ".join([self.name, self.proof, *([MAY_ACT_FOR_OTHERS] if self.may_act_for_others else [])]) + "\n"


class Clients:
    """The content of a clients file.

    Args:
        clients: Its lines.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = tuple(clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients)

    def with_token(self, token: str) -> Client | None:
        """The client that a token belongs to. Takes constant time for each hash."""
        proof = token_proof(token)
        found = None
        for client in self._clients:
            if hmac.compare_digest(client.proof, proof):
                found = client
        return found

    def with_certificate(self, name: str) -> Client | None:
        """The client that may prove its name by a certificate."""
        return next((client for client in self._clients if (client.name, client.proof) == (name, CERTIFICATE)), None)


class ClientsFile:
    """A clients file that a service watches: a change holds from the next call on.

    Args:
        path: The file.

    Raises:
        ClientsFileError: It is wrong, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _version(path)
        self._clients = read_clients(path)

    def current(self) -> Clients:
        """The file's clients; those that it had before where it is wrong now, which is logged once."""
        seen = _version(self._path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._clients = read_clients(self._path)
            except ClientsFileError as error:
                _log.error("GPT2_CLIENTS_FILE: %s; the clients that it had before stay in force", error)
            else:
                _log.info("GPT2_CLIENTS_FILE: read again, as it has changed: %d clients", len(list(self._clients)))
        return self._clients


def read_clients(path: Path) -> Clients:
    """Reads a clients file. Raises ClientsFileError."""
    return Clients([client for client in map(_Lines(path).read, _text(path).splitlines()) if client])


def add_client(path: Path, name: str, *, may_act_for_others: bool = False) -> str:
    """Adds a client, or another token of one, to a file, which is made where there is none.

    Returns:
        The token, which is stored nowhere.

    Raises:
        ClientsFileError: The name cannot be used, or the file is wrong.
    """
    token = _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    client = Client(name=name, proof=token_proof(token), may_act_for_others=may_act_for_others)
    if not _is_file_name(name):
        raise ClientsFileError(f"the name {name!r} cannot be used: {_NAME_RULE}")
    _edit(path, lambda lines: [*lines, client.line()])
    return token


def remove_client(path: Path, name: str, token_id: str | None = None) -> int:
    """Removes the lines of a client, or the one of its tokens whose id begins as given.

    Returns:
        How many lines were removed.

    Raises:
        UnknownClient: There is none; nothing was changed.
        ClientsFileError: The file is wrong, or the id is empty.
    """
    if token_id == "":
        raise ClientsFileError("--token: is empty: give the token's id, or leave --token out to remove all of them")

    def is_meant(line: str) -> bool:
        client = _Lines(path).read(line)
        return client is not None and client.name == name and client.token_id.startswith(token_id or "")

    removed: list[str] = []

    def edit(lines: list[str]) -> list[str]:
        removed.extend(filter(is_meant, lines))
        if not removed:
            token = f" with a token {token_id}" if token_id else ""
            raise UnknownClient(f"{path}: has no client {name!r}{token}: `gpt2 clients list` shows those that it has")
        return [line for line in lines if line not in removed]

    _edit(path, edit)
    return len(removed)


def token_proof(token: str) -> str:
    """A token as the file has it."""
    digest = hashlib.sha256(token.encode(errors="surrogatepass"))
    return f"sha256:{digest.hexdigest()}"


class _Lines:
    """Reads the lines of a file one after the other, and refuses what stands twice.

    Args:
        path: The file, for errors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._lines: dict[tuple[str, str], int] = {}

    def read(self, line: str) -> Client | None:
        """Reads a line; None for a comment or an empty one. Raises ClientsFileError."""
        self._number += 1
        fields = line.partition("#")[0].split()
        if not fields:
            return None
        name, proof, *rights = (*fields, "") if len(fields) == 1 else fields
        if not _is_file_name(name):
            raise self._error(f"the name cannot be used: {_NAME_RULE}")
        if proof != CERTIFICATE and not _HASH.fullmatch(proof):
            raise self._error(
                "after the name there must be 'sha256:' with 64 digits 0-9 a-f, or 'certificate': "
                "make the line by `gpt2 clients add NAME`"
            )
        if rights not in ([], [MAY_ACT_FOR_OTHERS]):
            raise self._error(f"the only right is '{MAY_ACT_FOR_OTHERS}': correct what follows the second word")
        key = (name if proof == CERTIFICATE else "", proof)
        if key in self._lines:
            raise self._error(f"has the token or the certificate of line {self._lines[key]}: keep one of them")
        self._lines[key] = self._number
        return Client(name=name, proof=proof, may_act_for_others=bool(rights))

    def _error(self, problem: str) -> ClientsFileError:
        return ClientsFileError(f"{self._path}, line {self._number}: {problem}")


def _is_file_name(name: str) -> bool:
    return is_name(name) and not set(" #") & set(name)


def _version(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # A file that could not be read is read again once its owner or mode is right, which changes st_ctime alone.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # Some editors begin a file with a byte order mark.
    except OSError as error:
        advice = "`gpt2 clients add NAME` makes it, for a service that may read it"
        raise ClientsFileError(f"{path}: cannot be read ({error.strerror}): {advice}") from None
    except UnicodeDecodeError:
        raise ClientsFileError(f"{path}: is no text in UTF-8: write it as such") from None


def _edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes a file's lines, all at once, where what it has now is right. Raises ClientsFileError."""
    path = path.resolve()
    try:
        with _locked(path.parent):
            if not path.exists():
                write_durable(path, "".join(change([_HEADER])))
                return
            read_clients(path)
            _replace(path, "".join(change([f"{line}\n" for line in _text(path).splitlines()])))
    except OSError as error:
        advice = "choose a folder of yours, or run this as the file's owner"
        raise ClientsFileError(f"{path}: cannot be written ({error.strerror}): {advice}") from None


def _replace(path: Path, content: str) -> None:
    """Replaces a file by one of the same owner and mode, so that the services that could read it still can."""
    status = path.stat()
    part = part_of(path)
    try:
        part.write_text(content, "utf-8")
        shutil.chown(part, status.st_uid, status.st_gid)
        part.chmod(status.st_mode & 0o777)
        replace_durable(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other commands that change a file of the folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
