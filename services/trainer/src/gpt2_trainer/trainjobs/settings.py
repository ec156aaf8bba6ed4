"""Where trainings run, and what a TrainJob asks of its cluster."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gpt2_common.settings import ServiceSettings

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_SECRET = re.compile(rf"(?P<variable>[A-Za-z_][A-Za-z0-9_]*)=(?P<secret>{_NAME})/(?P<key>[A-Za-z0-9._-]+)")


class TrainJobSettings(ServiceSettings):
    """The trainer's settings for trainings as TrainJobs. Field `x` is the variable GPT2_X."""

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
    trainjob_secrets: str = Field(
        "", description="Variables of TrainJobs that come from Secrets: NAME=SECRET/KEY, separated by commas."
    )
    kubernetes_api: str = Field(
        "", pattern="^(https?://.+)?$", description="Address of the Kubernetes API. Default: that of the own cluster."
    )
    kubernetes_credentials: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Folder with `token`, `ca.crt` and `namespace`, as a service account's.",
    )

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
