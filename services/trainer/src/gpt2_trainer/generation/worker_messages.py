"""Messages between a service and its generating processes, which are children as child_process.py has them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2_common import errors
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.model.backend import BackendName
from gpt2_trainer.model.compile_cache import CompileCacheOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """How a process generates, whatever the model.

    Args:
        backend: What Keras generates with.
        precision: Type that matrices are multiplied in: float32 or bfloat16.
        compile_cache: Where compiled programs are kept.
    """

    backend: BackendName
    precision: str
    compile_cache: CompileCacheOptions

    def to_argument(self) -> str:
        """The options as an argument of the process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_argument(cls, argument: str) -> "WorkerOptions":
        """Reads what `to_argument` made."""
        content = json.loads(argument)
        cache = content.pop("compile_cache")
        return cls(**content, compile_cache=CompileCacheOptions(Path(cache["folder"]), cache["max_bytes"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationTask:
    """What to generate."""

    prompts: tuple[str, ...]
    max_tokens: int
    samples: int
    sampling: SamplingConfig
    seed: int
    stops: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The task as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "GenerationTask":
        """Reads what `to_json` made."""
        sampling = SamplingConfig(**content["sampling"])
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
        return {"type": "InvalidRequest", "violations": list(error.violations)}
    if isinstance(error, errors.PipelineError):
        return {"type": type(error).__name__, "message": error.message}
    if isinstance(error, MemoryError):
        return {"type": "ResourceExhausted", "message": "not enough memory: ask for fewer samples"}
    return {"type": "", "message": type(error).__name__}


def error_from_json(content: dict[str, Any]) -> Exception:
    """The exception that `error_to_json` described."""
    if content["type"] == "InvalidRequest":
        return errors.InvalidRequest([(field, description) for field, description in content["violations"]])
    kind = getattr(errors, content["type"], RuntimeError) if content["type"] else RuntimeError
    error: Exception = kind(content["message"])
    return error
