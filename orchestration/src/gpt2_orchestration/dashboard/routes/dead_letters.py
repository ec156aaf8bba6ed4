"""Dead letters: listed with why and what, and sent again."""

from contextlib import suppress
from typing import Annotated

import grpc
from google.protobuf import json_format
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gpt2_contracts.events import EventAttributes
from gpt2_orchestration.client.dead_letters import DeadLetter, list_letters, replay
from gpt2_orchestration.client.event_log import event_message
from gpt2_orchestration.client.service_client import NotFoundError
from gpt2_orchestration.dashboard.routes.bodies import Body, read_body
from gpt2_orchestration.dashboard.serialization import Json, shorten


class ReplayBody(Body):
    """Which dead letters to send again."""

    places: Annotated[list[str], Field(min_length=1, max_length=1000)]


class DeadLetterRoutes:
    """The calls that are about dead letters.

    Args:
        bootstrap_servers: Kafka brokers.
        topic: Topic of the events.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._topic = topic
        self._servers = bootstrap_servers

    def routes(self) -> list[Route]:
        """The paths, and what answers them."""
        return [
            Route("/dead-letters", self.show_all),
            Route("/dead-letters/replay", self.replay, methods=["POST"]),
        ]

    def show_all(self, request: Request) -> JSONResponse:  # noqa: ARG002
        """All dead letters that the broker keeps."""
        return JSONResponse({"letters": [_describe(letter) for letter in list_letters(self._servers, self._topic)]})

    async def replay(self, request: Request) -> JSONResponse:
        """Sends some again."""
        body = await read_body(request, ReplayBody)
        return JSONResponse({"sent": await run_in_threadpool(self._replay, frozenset(body.places))})

    def _replay(self, places: frozenset[str]) -> int:
        chosen = [letter for letter in list_letters(self._servers, self._topic) if letter.place in places]
        if len(chosen) < len(places):
            message = "the broker does not keep all of these any more: read the list again"
            raise NotFoundError(message, grpc.StatusCode.NOT_FOUND)
        return replay(self._servers, chosen)


def _describe(letter: DeadLetter) -> Json:
    attributes = EventAttributes.from_headers(letter.record.headers)
    return {
        "place": letter.place,
        "topic": letter.topic,
        "consumer": letter.consumer,
        "reason": shorten(letter.reason),
        "time": letter.time or None,
        "type": shorten(attributes.type),
        "subject": shorten(attributes.subject),
        "bytes": len(letter.record.value or b""),
        "payload": shorten(_payload(attributes.type, letter.record.value or b"")),
    }


def _payload(kind: str, value: bytes) -> str:
    """What the record holds: our messages in JSON, all else as text."""
    message = event_message(kind, value)
    if message is not None:
        with suppress(json_format.SerializeToJsonError):
            return json_format.MessageToJson(message, preserving_proto_field_name=True)
    return value.decode(errors="replace")
