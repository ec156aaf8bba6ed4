"""How the next token is drawn."""

from dataclasses import dataclass
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Sampling parameters, as `SamplingConfig` in the protocol describes them."""

    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the model's logits."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


def resolve_sampling_config(config: pb.SamplingConfig) -> SamplingConfig:
    """The sampling parameters of a request, with defaults for what it leaves out."""
    given: dict[str, Any] = {field.name: value for field, value in config.ListFields()}
    return SamplingConfig(**given)
