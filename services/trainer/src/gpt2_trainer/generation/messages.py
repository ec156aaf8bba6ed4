"""What a service and its generating processes say to each other: one JSON object a line, over pipes."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gpt2_common import errors
from gpt2_trainer.configuration.sampling import SamplingOptions

CANCEL = "cancel\n"
"""The line that ends the task under way early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationTask:
    """What to generate."""

    prompts: tuple[str, ...]
    max_tokens: int
    samples: int
    sampling: SamplingOptions
    seed: int
    stops: tuple[str, ...] = field(default=())

    def to_line(self) -> str:
        """The task as a line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "GenerationTask":
        """Reads what `to_line` made."""
        sampling = SamplingOptions(**content["sampling"])
        texts = {name: tuple(content[name]) for name in ("prompts", "stops")}
        return cls(**{**content, **texts, "sampling": sampling})


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of one sample of one prompt; `finish_reason` is a GenerateResponse.FinishReason."""

    prompt: int
    sample: int
    text: str
    finish_reason: int

    def to_json(self) -> dict[str, Any]:
        """The piece as JSON."""
        return asdict(self)


def error_to_json(error: Exception) -> dict[str, Any]:
    """An exception as a message; of those that users are not meant to see, its type alone."""
    if isinstance(error, errors.InvalidRequest):
        return {"error": "InvalidRequest", "violations": list(error.violations)}
    if isinstance(error, errors.PipelineError):
        return {"error": type(error).__name__, "message": error.message}
    if isinstance(error, MemoryError):
        return {"error": "ResourceExhausted", "message": "not enough memory: ask for fewer samples"}
    return {"error": "", "message": type(error).__name__}


def error_from_json(content: dict[str, Any]) -> Exception:
    """The exception that `error_to_json` described."""
    if content["error"] == "InvalidRequest":
        return errors.InvalidRequest([(field, description) for field, description in content["violations"]])
    kind = getattr(errors, content["error"], RuntimeError) if content["error"] else RuntimeError
    error: Exception = kind(content["message"])
    return error
