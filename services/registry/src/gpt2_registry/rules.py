"""Which labels there are, and what a version must fulfil to be given one: the setting GPT2_LABEL_RULES.

    {"staging": {}, "production": {"from": ["staging"], "metrics": {"validation_loss": {"max": 3.5}}}}

A label that is not named is refused. `from` names labels of which the version must hold one; `draft` stands for a
version that holds none. `metrics` bounds what the version was measured at. With no rules, any label may go anywhere.
"""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from gpt2_common.errors import FailedPrecondition
from gpt2_registry.mlflow_registry import RegisteredVersion

NOT_READY = "draft"
"""Stands for the labels of a version that holds none."""

_Bound = Annotated[float, Field(allow_inf_nan=False)]


class MetricBounds(BaseModel):
    """Least and greatest value of a metric; at least one is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: _Bound = -math.inf
    max: _Bound = math.inf

    @model_validator(mode="after")
    def _check_any(self) -> "MetricBounds":
        if not self.model_fields_set:
            raise ValueError("needs min, max or both")
        return self

    def refusal(self, name: str, version: RegisteredVersion) -> str:
        """Why a version does not keep the bounds; empty where it does."""
        value = version.metrics.get(name)
        if value is None:
            return f"its {name} is not known"
        if value > self.max:
            return f"its {name} of {value:.6g} is over the {self.max:.6g} allowed"
        return f"its {name} of {value:.6g} is under the {self.min:.6g} required" if value < self.min else ""


class LabelRule(BaseModel):
    """What one label asks of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origins: tuple[str, ...] = Field((), alias="from")
    """Labels of which the version must hold one; none: whatever it holds."""
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
        """Reads the setting; empty: no rules. Raises ValueError, whose text says where it is wrong."""
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

    def require_known(self, label: str) -> None:
        """Raises FailedPrecondition where the rules do not have a label."""
        if self.root and label not in self.root:
            raise FailedPrecondition(
                f"the label {label!r} is not allowed: GPT2_LABEL_RULES has {', '.join(self.root)}", label=label
            )

    def refusal(self, label: str, version: RegisteredVersion) -> str:
        """Why a version may not have a label that is known; empty where it may. What it holds already, it may have."""
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
