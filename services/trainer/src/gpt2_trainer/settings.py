"""Settings of the trainer, in addition to those of every service."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from gpt2_common.settings import LocalFolder, ServiceSettings
from gpt2_trainer.model.backend import AUTO, DEFAULT_BACKEND, BackendName, BackendSetting
from gpt2_trainer.model.compile_cache import CompileCacheOptions

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_SECRET = re.compile(rf"(?P<variable>[A-Za-z_][A-Za-z0-9_]*)=(?P<secret>{_NAME})/(?P<key>[A-Za-z0-9._-]+)")


class TrainerSettings(ServiceSettings):
    """Settings of the trainer. Field `x` is the variable GPT2_X."""

    listen: str = Field("127.0.0.1:50053", description="Address and port to serve gRPC on; port 0 takes a free one.")
    keras_backend: BackendSetting = Field(
        cast(Any, None),
        description="What Keras trains with: tensorflow, jax or auto. auto: JAX on GPUs, on several devices and as "
        "TrainJobs; on CPUs TensorFlow for short trainings, and for others what a short calibration measures to be "
        "faster. A training keeps what it began with. Evaluations compute with TensorFlow then. Default: the variable "
        "KERAS_BACKEND, or auto.",
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
    download_timeout_seconds: float = Field(
        30.0, gt=0, description="Download timeout: seconds without a byte after which it fails."
    )
    generate_backend: Literal["tensorflow", "jax"] = Field(
        "jax", description="What Keras generates text with; JAX is the faster to start and to run on CPUs."
    )
    generate_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Compute dtype of text generation. bfloat16 rounds the weights: on GPUs for half the memory; "
        "on CPUs, with JAX, for half as much again, and a single sample comes sooner. Texts differ from those of a "
        "served model, which is float32.",
    )
    generate_idle_seconds: float = Field(
        300.0, ge=0, description="Time without requests after which a model is unloaded from memory."
    )
    generate_models: int = Field(2, ge=1, description="Maximum number of models in memory for text generation.")
    compile_cache_folder: LocalFolder = Field(
        Path(".gpt2/compiled"),
        description="Local folder that compiled programs are kept in, so that the first text of a model, and "
        "the first step of a training, come seconds sooner; and results of calibrations. Whoever can write to it can "
        "run code in the service.",
    )
    compile_cache_bytes: int = Field(
        256 << 20,
        ge=0,
        description="Maximum size of the folder of compiled programs; the least recently used are evicted first. 0: "
        "no cache.",
    )
    device_memory_bytes: int = Field(
        0, ge=0, description="Memory that a training may use; larger ones are refused. 0: what the device has."
    )
    device_peak_flops: float = Field(
        0.0, ge=0, description="Peak FLOP/s of one device, for MFU. 0: by the device's name."
    )

    training_backend: Literal["process", "trainjob"] = Field(
        "process", description="What a training is: a process beside the service, or a Kubeflow Trainer TrainJob."
    )
    trainjob_image: str = Field("", max_length=500, description="Image of TrainJobs: the trainer's, with CUDA.")
    trainjob_runtime: str = Field(
        "TrainingRuntime/gpt2-trainer",
        pattern=rf"^(Cluster)?TrainingRuntime/{_NAME}$",
        description="Kind and name of the runtime of TrainJobs.",
    )
    trainjob_namespace: str = Field("", description="Namespace of TrainJobs. Default: the service's own.")
    trainjob_gpus: int = Field(1, ge=0, description="GPUs of a TrainJob.")
    trainjob_cpu: str = Field("4", pattern=_QUANTITY, description="Processors that a TrainJob asks for.")
    trainjob_memory: str = Field("16Gi", pattern=_QUANTITY, description="Memory of a TrainJob.")
    trainjob_max_nodes: int = Field(
        0,
        ge=0,
        description="Maximum num_nodes of a training, such as 1 where a volume of TrainJobs' pods is ReadWriteOnce. "
        "0: no limit.",
    )
    trainjob_secrets: str = Field(
        "", description="Variables of TrainJobs that come from Secrets: NAME=SECRET/KEY, separated by commas."
    )
    node_start_seconds: float = Field(
        900.0, gt=0, description="Time that the nodes of a training wait for each other when they start."
    )
    node_heartbeat_seconds: int = Field(
        60,
        ge=1,
        description="Node heartbeat timeout: seconds without a sign of life of one node after which the training's "
        "other nodes end, to resume from the last checkpoint.",
    )
    kubernetes_api: str = Field(
        "", pattern="^(https?://.+)?$", description="Address of the Kubernetes API. Default: that of the own cluster."
    )
    kubernetes_credentials: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Folder with `token`, `ca.crt` and `namespace`, as a service account's.",
    )

    @property
    def evaluation_backend(self) -> BackendName:
        """What evaluations compute with; they are too short to calibrate."""
        return DEFAULT_BACKEND if self.keras_backend == AUTO else self.keras_backend

    @property
    def trainjob_backend(self) -> BackendName:
        """What TrainJobs train with: they may have GPUs and other nodes."""
        return "jax" if self.keras_backend == AUTO else self.keras_backend

    @property
    def compile_cache(self) -> CompileCacheOptions:
        """Cache of compiled programs."""
        return CompileCacheOptions(self.compile_cache_folder, self.compile_cache_bytes)

    @property
    def admitted_bytes(self) -> int:
        """Memory limit of a training at admission; 0: that of the device.

        The service cannot see a TrainJob's device: without a setting it refuses nothing, and the job checks itself.
        """
        return self.device_memory_bytes or (sys.maxsize if self.training_backend == "trainjob" else 0)

    @field_validator("keras_backend", mode="before")
    @classmethod
    def _backend_of_keras(cls, value: str | None) -> str:
        return value or os.environ.get("KERAS_BACKEND") or AUTO

    @model_validator(mode="after")
    def _check_trainjobs(self) -> Self:
        if self.training_backend == "trainjob" and not self.trainjob_image:
            raise ValueError("GPT2_TRAINJOB_IMAGE is needed with GPT2_TRAINING_BACKEND=trainjob: the trainer's image")
        for part in self._secret_parts():
            if not _SECRET.fullmatch(part):
                raise ValueError(f"GPT2_TRAINJOB_SECRETS: {part!r} is no NAME=SECRET/KEY")
        return self

    @property
    def secret_references(self) -> Mapping[str, tuple[str, str]]:
        """Name of a Secret and key in it, by the variable that its value is for."""
        found = [match for part in self._secret_parts() if (match := _SECRET.fullmatch(part))]
        return {match["variable"]: (match["secret"], match["key"]) for match in found}

    def _secret_parts(self) -> list[str]:
        return [part.strip() for part in self.trainjob_secrets.split(",") if part.strip()]
