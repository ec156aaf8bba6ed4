"""The identity of a caller, and the interface that authenticates it.

Another method, such as OIDC, is another Authenticator. The identity of a call is kept in a context variable, so that
jobs and servicers find it however deep they are called.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from gpt2_common.errors import PermissionDenied

MAX_NAME_LENGTH = 200
_UNAUTHENTICATED_NAME = "unauthenticated"

Metadata = Mapping[str, str | bytes]
"""Metadata of a call, by lower-case key."""

AuthContext = Mapping[str, Sequence[bytes]]
"""What gRPC knows of the peer's connection, such as `x509_common_name`; see `grpc.ServicerContext.auth_context`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The one who calls, or on whose behalf an event starts a stage."""

    actor: str
    """What is recorded: a proven name, or words that no name can be (`unauthenticated`, `shared token`)."""
    named: bool = True
    """Whether `actor` is a proven name."""
    may_act_for_others: bool = False
    """Whether a request of this identity may name another actor."""

    def acting_for(self, claimed: str) -> str:
        """The actor to record for a request that names one.

        Args:
            claimed: The request's `actor`; empty where it names none.

        Returns:
            This identity's actor; with a claimed name, both: `ann (by dashboard)`, `ann (unauthenticated)`.

        Raises:
            PermissionDenied: This identity has a name, and may not act for others.
        """
        if claimed in ("", self.actor):
            return self.actor
        if not self.named:
            return f"{claimed} ({self.actor})"
        if self.may_act_for_others:
            return f"{claimed} (by {self.actor})"
        raise PermissionDenied(
            f"actor: {self.actor!r} may not act for {claimed!r}: leave actor empty, or allow it by "
            f"'may-act-for-others' on the line of {self.actor!r} in GPT2_CLIENTS_FILE",
            caller=self.actor,
        )

    def __str__(self) -> str:
        """As a sentence names it."""
        return self.actor if self.named else f"a caller ({self.actor})"


UNAUTHENTICATED = Identity(actor=_UNAUTHENTICATED_NAME, named=False)
"""A caller of a service that has no client tokens, and asks for no client certificates."""

SHARED_TOKEN = Identity(actor="shared token", named=False)
"""A caller with the token that all share: allowed to call, and nobody in particular."""


class Authenticator(Protocol):
    """Authenticates callers."""

    async def authenticate(self, metadata: Metadata, peer: AuthContext) -> Identity:
        """Returns the identity that a call proves.

        Args:
            metadata: The call's metadata.
            peer: What gRPC knows of the connection.

        Raises:
            Unauthenticated: The call proves none that is allowed to call.
        """


def is_name(text: str) -> bool:
    """Whether a text can name an identity.

    Parentheses are kept for how an actor is known, and `unauthenticated` for those who are not.
    """
    return (
        0 < len(text) <= MAX_NAME_LENGTH
        and text.isprintable()
        and text == text.strip()
        and not set("()") & set(text)
        and text not in (UNAUTHENTICATED.actor, SHARED_TOKEN.actor)
    )


_caller: ContextVar[Identity] = ContextVar("caller", default=UNAUTHENTICATED)


def set_caller(identity: Identity) -> None:
    """Sets who calls, until the end of the task. gRPC and the event consumer run each call and event in its own."""
    _caller.set(identity)


def current_caller() -> Identity:
    """Who calls in this task, and in the threads that it waits for."""
    return _caller.get()
