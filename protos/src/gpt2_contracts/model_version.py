"""A registered version of a model: what its job's output says, and the tags that it has in MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

INDEXED: Mapping[str, type] = MappingProxyType({"model_name": str, "version": int, "label": str})
"""Counts and properties that pipelines keep in their metadata."""

MODEL_NAME_PROPERTY, VERSION_PROPERTY = "model_name", "version"
"""Properties of the output that lists of runs show."""

TAG_PREFIX = "gpt2."
"""Every tag of the pipeline begins with this, but for READINESS_TAG."""
JOB_ID_TAG = "gpt2.job_id"
REQUEST_DIGEST_TAG = "gpt2.request_digest"
"""With JOB_ID_TAG, identifies the job that made a run, a logged model and a version."""
RUN_ID_TAG = "gpt2.run_id"
"""The pipeline's run."""
MODEL_DIGEST_TAG = "gpt2.model_digest"
MODEL_ARTIFACT_TAG = "gpt2.model_artifact"
"""URI of the model artifact."""
LOGS_DIGEST_TAG = "gpt2.logs_digest"
LABEL_OUTCOME_TAG = "gpt2.label_outcome"
"""Whether RegisterModel set the label that it was asked for; see LABEL_SET."""
LABEL_TAG_PREFIX = "gpt2.label."
"""Followed by a label: who set it, when and why."""
LABEL_HISTORY_TAG_PREFIX = "gpt2.label_history."
"""Followed by the id of a change, on the model."""
EVALUATION_TAG_PREFIX = "gpt2.evaluation."
"""Followed by the key of a measurement: its metrics."""
READINESS_TAG = "readiness"
"""Labels that a version holds, joined by commas, or NOT_READY: to search for in MLflow."""
NOT_READY = "draft"
"""Stands for the labels of a version that holds none."""

LABEL_SET = "set"


def fact_tag(name: str) -> str:
    """The tag of a fact of `model.json` (see gpt2_contracts.model), such as `gpt2.validation_loss`."""
    return TAG_PREFIX + name


def label_not_set(reason: str) -> str:
    """The outcome of a registration whose version did not get the label."""
    return f"not set: {reason}"


def label_error(tags: Mapping[str, str]) -> str:
    """Why a version did not get the label that its registration asked for, such as `not set: …`; empty where it did."""
    outcome = tags.get(LABEL_OUTCOME_TAG, "")
    return "" if outcome == LABEL_SET else outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionOutput:
    """Counts and properties of RegisterModel's output."""

    model_name: str
    version: int
    model_uri: str
    """URI under which MLflow loads it."""
    run_url: str
    """Page of its run in MLflow."""
    label_outcome: str = ""
    """`set`, or why not; empty where no label was asked for."""
    validation_loss: float | None = None
    """Nats per token; None where it is not known."""

    def to_counts(self) -> dict[str, float]:
        """The artifact's counts."""
        loss = {} if self.validation_loss is None else {"validation_loss": self.validation_loss}
        return {"version": self.version, **loss}

    def to_properties(self) -> dict[str, str]:
        """The artifact's properties."""
        return {
            MODEL_NAME_PROPERTY: self.model_name,
            VERSION_PROPERTY: str(self.version),
            "model_uri": self.model_uri,
            "run_url": self.run_url,
            **({"label_outcome": self.label_outcome} if self.label_outcome else {}),
        }

    @classmethod
    def from_artifact(cls, counts: Mapping[str, float | None], properties: Mapping[str, str]) -> "VersionOutput":
        """Reads an output; what it lacks is empty, and the version 0."""
        version = properties.get(VERSION_PROPERTY, "")
        return cls(
            model_name=properties.get(MODEL_NAME_PROPERTY, ""),
            version=int(version) if version.isdecimal() else 0,
            model_uri=properties.get("model_uri", ""),
            run_url=properties.get("run_url", ""),
            label_outcome=properties.get("label_outcome", ""),
            validation_loss=counts.get("validation_loss"),
        )
