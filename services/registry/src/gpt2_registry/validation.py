"""Validation of requests beyond their fields' rules: all problems at once, without a call to another service."""

import re
from collections.abc import Callable, Mapping

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_contracts.model_version import READINESS_TAG, TAG_PREFIX
from gpt2_registry.label_rules import LabelRules

Problems = list[tuple[str, str]]

_RESERVED_TAG = re.compile(rf"({re.escape(TAG_PREFIX)}|mlflow\.).*|{READINESS_TAG}", re.IGNORECASE)


def register_problems(request: pb.RegisterModelRequest, rules: LabelRules) -> Problems:
    """Problems of a registration, apart from the rules of its fields.

    Args:
        request: The request.
        rules: Which labels exist.
    """
    problems: Problems = []
    if request.label and not rules.is_known(request.label):
        problems.append(("label", rules.unknown(request.label)))
    if request.HasField("label_gate"):
        problems += _gate_problems(request)
    if request.label_despite_regression and not request.label:
        problems.append(("label", "is required with label_despite_regression"))
    return problems + _tag_problems(request.tags)


def evaluation_problems(request: pb.RecordEvaluationRequest, require_allowed: Callable[[str, str], str]) -> Problems:
    """Problems of the recording of an evaluation.

    Args:
        request: The request.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    try:
        require_allowed("evaluation_uri", request.evaluation_uri)
    except InvalidRequest as error:
        return list(error.violations)
    return []


def require(problems: Problems) -> None:
    """Raises InvalidRequest when there are problems."""
    if problems:
        raise InvalidRequest(problems)


def _gate_problems(request: pb.RegisterModelRequest) -> Problems:
    gate = request.label_gate
    limited = gate.HasField("max_validation_loss") or gate.HasField("max_bits_per_byte")
    problems: Problems = []
    if not request.label:
        problems.append(("label", "is required with label_gate"))
    if not limited and not gate.must_improve:
        problems.append(("label_gate", "needs max_validation_loss, max_bits_per_byte or must_improve"))
    return problems


def _tag_problems(tags: Mapping[str, str]) -> Problems:
    return [
        ("tags", f"{name!r} is reserved for the pipeline or MLflow: choose another name")
        for name in sorted(tags)
        if _RESERVED_TAG.fullmatch(name)
    ]
