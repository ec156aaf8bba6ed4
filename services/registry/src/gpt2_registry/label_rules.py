"""Conditions of labels: the setting GPT2_LABEL_RULES for every change, and the gate of one registration.

    {"staging": {}, "production": {"from": ["staging"], "metrics": {"validation_loss": {"max": 3.5}}}}

A label without a rule is refused. Without any rules, every label may be set on every version.
"""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition
from gpt2_contracts.metrics import VALIDATION_BITS_PER_BYTE
from gpt2_contracts.model_version import NOT_READY, fact_tag
from gpt2_registry.mlflow_registry import RegisteredVersion

_Bound = Annotated[float, Field(allow_inf_nan=False)]


class MetricBounds(BaseModel):
    """Minimum and maximum of a metric; at least one is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: _Bound = -math.inf
    max: _Bound = math.inf

    @model_validator(mode="after")
    def _check_any(self) -> "MetricBounds":
        if not self.model_fields_set:
            raise ValueError("needs min, max or both")
        return self

    def refusal(self, name: str, version: RegisteredVersion) -> str:
        """Why a version is out of the bounds; empty where it is not."""
        value = version.metrics.get(name)
        if value is None:
            return f"its {name} is not known"
        if value > self.max:
            return f"its {name} of {value:.6g} is over the {self.max:.6g} allowed"
        return f"its {name} of {value:.6g} is under the {self.min:.6g} required" if value < self.min else ""


class LabelRule(BaseModel):
    """What one label requires of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origins: tuple[str, ...] = Field((), alias="from")
    """Labels of which the version must have one, `draft` for none; empty: any."""
    metrics: Mapping[str, MetricBounds] = {}

    def refusal(self, version: RegisteredVersion) -> str:
        """Why a version may not have the label; empty where it may."""
        held = tuple(version.labels) or (NOT_READY,)
        if self.origins and not set(held) & set(self.origins):
            return f"it is {' and '.join(held)}; allowed from {', '.join(self.origins)}"
        reasons = (bounds.refusal(name, version) for name, bounds in self.metrics.items())
        return "; ".join(filter(None, reasons))


class LabelRules(RootModel[Mapping[str, LabelRule]]):
    """The rules of all labels."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def parse(cls, text: str) -> "LabelRules":
        """Parses the setting; empty: no rules. Raises ValueError, whose text says where it is wrong."""
        if not text.strip():
            return cls({})
        try:
            rules = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ValueError(f'must be JSON as {{"staging": {{}}}}: {where}: {first["msg"]}') from None
        origins = {origin for rule in rules.root.values() for origin in rule.origins}
        if unknown := sorted(origins - set(rules.root) - {NOT_READY}):
            raise ValueError(f"names {', '.join(unknown)} in 'from', which is no label of it")
        return rules

    def is_known(self, label: str) -> bool:
        """Whether the rules name a label; without rules, every label is known."""
        return not self.root or label in self.root

    def unknown(self, label: str) -> str:
        """The message for a label that the rules do not name."""
        return f"{label!r} is not allowed: GPT2_LABEL_RULES has {', '.join(self.root)}"

    def require_known(self, label: str) -> None:
        """Raises FailedPrecondition where the rules do not name a label."""
        if not self.is_known(label):
            raise FailedPrecondition(f"the label {self.unknown(label)}", label=label)

    def refusal(self, label: str, version: RegisteredVersion) -> str:
        """Why a version may not have a known label; empty where it may. It may keep the labels that it has."""
        rule = self.root.get(label)
        return "" if rule is None or label in version.labels else rule.refusal(version)

    def require(self, label: str, version: RegisteredVersion) -> None:
        """Raises FailedPrecondition where a version may not have a label."""
        self.require_known(label)
        if why_not := self.refusal(label, version):
            raise FailedPrecondition(
                f"version {version.version} of {version.model_name!r} may not be {label}: {why_not}",
                label=label,
                version=str(version.version),
            )


def gate_refusal(
    request: pb.RegisterModelRequest, version: RegisteredVersion, labelled: RegisteredVersion | None
) -> str:
    """Why the version of a registration does not get the label that it asks for; empty where it does.

    Args:
        request: The registration, with its gate.
        version: The version that it registered.
        labelled: The version that has the label, if any.
    """
    if _has_regressed(version) and not request.label_despite_regression:
        return (
            "its training ended with a worse validation loss than it began with: set it with SetLabel once the model "
            "is found good, or register with label_despite_regression"
        )
    gate = request.label_gate
    if gate.HasField("max_bits_per_byte"):
        limit = MetricBounds(max=gate.max_bits_per_byte)
        if refused := limit.refusal(VALIDATION_BITS_PER_BYTE, version):
            return refused
    if not gate.HasField("max_validation_loss") and not gate.must_improve:
        return ""
    loss = version.validation_loss
    if loss is None:
        return "its validation loss is not known"
    if gate.HasField("max_validation_loss") and loss > gate.max_validation_loss:
        return f"its validation loss of {loss:.6g} is over the {gate.max_validation_loss:.6g} allowed"
    if gate.must_improve and labelled is not None and labelled.version != version.version:
        return _improvement_refusal(version, loss, labelled)
    return ""


def _has_regressed(version: RegisteredVersion) -> bool:
    return version.tags.get(fact_tag("regressed"), "").lower() == "true"


def _improvement_refusal(version: RegisteredVersion, loss: float, labelled: RegisteredVersion) -> str:
    tokenizer, before = fact_tag("tokenizer_digest"), labelled.validation_loss
    if before is None:
        return f"the validation loss of version {labelled.version}, which has the label, is not known"
    name = "validation loss"
    if version.tags.get(tokenizer) != labelled.tags.get(tokenizer):
        if version.bits_per_byte is None or labelled.bits_per_byte is None:
            return (
                f"version {labelled.version}, which has the label, has another tokenizer: their losses do not compare, "
                "and their bits per byte are not both known"
            )
        name, loss, before = "bits per byte", version.bits_per_byte, labelled.bits_per_byte
    if loss >= before:
        return f"its {name} of {loss:.6g} is not under the {before:.6g} of version {labelled.version}"
    return ""
