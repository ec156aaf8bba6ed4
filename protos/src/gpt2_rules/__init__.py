"""Checks and descriptions of the rules of requests: options of their fields (gpt2/validation/v1/rules.proto)."""

from gpt2_rules.checking import Violation, violations
from gpt2_rules.descriptions import describe
from gpt2_rules.reading import is_required
from gpt2_rules.values import content_violations, value_violations

__all__ = ["Violation", "content_violations", "describe", "is_required", "value_violations", "violations"]
