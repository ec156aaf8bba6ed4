"""The trainer's settings: the common ones, and its own."""

import os
import sys
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from gpt2_common.settings import LocalFolder
from gpt2_trainer.trainjobs.settings import TrainJobSettings


class TrainerSettings(TrainJobSettings):
    """What the trainer can be told. Field `x` is the variable GPT2_X."""

    listen: str = Field("127.0.0.1:50053", description="Address and port to serve gRPC on; port 0 takes a free one.")
    keras_backend: Literal["tensorflow", "jax"] = Field(
        cast(Any, None),
        description="What Keras trains with: tensorflow or jax. Default: the variable KERAS_BACKEND, or tensorflow.",
    )
    openai_base_url: str = Field(
        "https://openaipublic.blob.core.windows.net/gpt-2/models",
        pattern="^https?://.+",
        description="Folder with OpenAI's models by size; a mirror of it will do.",
    )
    openai_cache: LocalFolder = Field(
        Path(".gpt2/openai"), description="Local folder that downloaded models are kept in."
    )
    hub_cache: LocalFolder = Field(
        Path(".gpt2/hub"),
        description="Local folder that models of a Hugging Face hub (hf://) are kept in. HF_ENDPOINT names the hub, "
        "HF_TOKEN a token.",
    )
    download_timeout_seconds: float = Field(30.0, gt=0, description="Longest silence of a download.")
    generate_backend: Literal["tensorflow", "jax"] = Field(
        "jax", description="What Keras generates text with; JAX is the faster to start and to run on CPUs."
    )
    generate_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Numbers that models generate text with. bfloat16 rounds the weights: on GPUs for half the memory; "
        "on CPUs, with JAX, for half as much again, and a single sample comes sooner. Texts differ from those of a "
        "served model, which is float32.",
    )
    generate_idle_seconds: float = Field(
        300.0, ge=0, description="Time after which a model that generates no text is put out of memory."
    )
    generate_models: int = Field(2, ge=1, description="Models that may be in memory to generate text.")
    device_memory_bytes: int = Field(
        0, ge=0, description="Memory that a training may use; larger ones are refused. 0: what the device has."
    )
    device_peak_flops: float = Field(
        0.0, ge=0, description="Greatest operations a second of one device, for MFU. 0: by the device's name."
    )

    @property
    def admitted_bytes(self) -> int:
        """Memory that a training is held against before it starts; 0: find out.

        A TrainJob's device cannot be asked from here: without a setting nothing is refused, and the job looks itself.
        """
        return self.device_memory_bytes or (sys.maxsize if self.training_backend == "trainjob" else 0)

    @field_validator("keras_backend", mode="before")
    @classmethod
    def _backend_of_keras(cls, value: str | None) -> str:
        return value or os.environ.get("KERAS_BACKEND") or "tensorflow"
