"""Proofs of identity that services take: client tokens, the shared token, client certificates."""

import hmac
from collections.abc import Sequence

from gpt2_common.clients import Client, Clients, ClientsFile, ClientsFileError, token_proof
from gpt2_common.errors import Unauthenticated
from gpt2_common.identity import (
    SHARED_TOKEN,
    UNAUTHENTICATED,
    AuthContext,
    Authenticator,
    Identity,
    Metadata,
    is_name,
)
from gpt2_common.settings import ServiceSettings, SettingsError

_NO_TOKEN = (
    "the call carries no valid token: send the metadata 'authorization: Bearer <token>' "
    "(the gpt2 command and other services take it from GPT2_CLIENT_TOKEN)"
)
_NO_NAME = (
    "the client certificate names nobody: it needs a URI, a common name or a DNS name "
    "of 1 to 200 printable characters without parentheses"
)
# Where a certificate's name is looked for; a URI is the most exact (SPIFFE), and a common name the most usual.
_CERTIFICATE_NAMES = ("peer_uri", "x509_common_name", "peer_dns")


class ClientAuthenticator:
    """Authenticates callers as the settings require.

    A token that is in the clients file gives its client's name, whatever certificate the connection has: one connection
    may carry the calls of many. The shared token gives no name; a certificate beside it does. A certificate alone is
    enough where no tokens are required, or where the clients file lists its name with `certificate`.

    Args:
        clients: The clients file, if there is one.
        shared_token: The token that all callers may share, if there is one.
        certificates: Whether the server asks for client certificates, and has verified those that it got.
    """

    def __init__(self, clients: ClientsFile | None, shared_token: str | None, *, certificates: bool) -> None:
        self._clients = clients
        self._shared_proof = None if shared_token is None else token_proof(shared_token)
        self._certificates = certificates

    async def authenticate(self, metadata: Metadata, peer: AuthContext) -> Identity:
        """See Authenticator."""
        clients = Clients(()) if self._clients is None else self._clients.current()
        token = _bearer_token(metadata)
        name = _certificate_name(peer) if self._certificates else ""
        listed = clients.with_certificate(name)
        if self._clients is None and self._shared_proof is None:
            if not self._certificates:
                return UNAUTHENTICATED
            if not name:
                raise Unauthenticated(_NO_NAME)
            return _identity(name, listed)
        if not token:
            if listed is None:
                raise Unauthenticated(_NO_TOKEN)
            return _identity(name, listed)
        client = clients.with_token(token)
        if client is not None:
            return _identity(client.name, client)
        if self._shared_proof is None or not hmac.compare_digest(self._shared_proof, token_proof(token)):
            raise Unauthenticated(_NO_TOKEN)
        return _identity(name, listed) if name else SHARED_TOKEN


def open_authenticator(settings: ServiceSettings) -> Authenticator:
    """The authenticator that the settings require. Raises SettingsError when the clients file cannot be used."""
    try:
        clients = None if settings.clients_file is None else ClientsFile(settings.clients_file)
    except ClientsFileError as error:
        raise SettingsError(f"GPT2_CLIENTS_FILE: {error}") from None
    return ClientAuthenticator(
        clients,
        settings.auth_token.get_secret_value() if settings.auth_token else None,
        certificates=settings.tls_client_ca_file is not None,
    )


def _identity(name: str, client: Client | None) -> Identity:
    return Identity(actor=name, may_act_for_others=client is not None and client.may_act_for_others)


def _bearer_token(metadata: Metadata) -> str:
    sent = metadata.get("authorization", "")
    scheme, _, token = (sent if isinstance(sent, str) else sent.decode("latin-1")).partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _certificate_name(peer: AuthContext) -> str:
    """The name that a verified certificate gives; empty where it has none that can be recorded."""
    names: Sequence[bytes] = [name for kind in _CERTIFICATE_NAMES for name in peer.get(kind, ())]
    texts = (name.decode("utf-8", "backslashreplace") for name in names)
    return next((text for text in texts if is_name(text)), "")
