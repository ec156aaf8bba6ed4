"""Bodies of requests, read and checked once, here."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

_LARGEST = 64 * 1024

Content = TypeVar("Content", bound="Body")


class Body(BaseModel):
    """What a body says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


async def read_body(request: Request, kind: type[Content]) -> Content:
    """Reads a body. Raises HTTPException, with one sentence, when it is too long or not what it should be."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST:
            raise HTTPException(413, f"the request is longer than {_LARGEST:,} bytes: shorten it")
    try:
        return kind.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(400, f"{where}: {first['msg']}") from None
