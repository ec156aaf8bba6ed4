"""What can be wrong with a request, as pairs of a field's path and a description. Asks nobody; finds all at once."""

import math
import re
from collections.abc import Callable, Mapping

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.errors import InvalidRequest

Problems = list[tuple[str, str]]

_MODEL_NAME = re.compile(r"[A-Za-z0-9_. -]{1,200}")
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,255}")
# MLflow gives these a meaning of its own: `models:/name@latest`, `models:/name@v3`.
_RESERVED_LABEL = re.compile(r"latest|v[0-9]+", re.IGNORECASE)
_TAG_NAME = re.compile(r"[A-Za-z0-9_. :/-]{1,250}")
_OWN_TAG = re.compile(r"(gpt2|mlflow)\..*|readiness", re.IGNORECASE)
_MOST_TAGS = 50
_LONGEST_TAG = 5000
_FEWEST_COMPARED = 2
_MOST_COMPARED = 20
_LONGEST_REASON = 1000
_LONGEST_ACTOR = 200


def register_problems(request: pb.RegisterModelRequest, require_allowed: Callable[[str, str], str]) -> Problems:
    """What is wrong with a registration.

    Args:
        request: The request.
        require_allowed: Checks a URI; takes the field's name and the URI, and raises InvalidRequest.
    """
    problems = _uri_problems("model_uri", request.model_uri, require_allowed)
    if request.logs_uri:
        problems += _uri_problems("logs_uri", request.logs_uri, require_allowed)
    problems += _model_name_problems(request.model_name)
    if request.label:
        problems += _label_problems(request.label)
    if request.HasField("label_gate"):
        problems += _gate_problems(request)
    if request.label_despite_worse_end and not request.label:
        problems.append(("label", "is required with label_despite_worse_end"))
    return problems + _reason_problems(request.reason) + _tag_problems(request.tags)


def get_problems(request: pb.GetModelVersionRequest) -> Problems:
    """What is wrong with a look at one version."""
    problems = _model_name_problems(request.model_name)
    selector = request.WhichOneof("selector")
    if selector is None:
        problems.append(("selector", "one of version and label is required"))
    elif selector == "version":
        problems += _version_problems(request.version)
    else:
        problems += _label_problems(request.label)
    return problems


def list_problems(request: pb.ListModelVersionsRequest) -> Problems:
    """What is wrong with a look at all versions, but for its page."""
    return _model_name_problems(request.model_name)


def compare_problems(request: pb.CompareModelsRequest) -> Problems:
    """What is wrong with a comparison."""
    problems = _model_name_problems(request.model_name)
    numbers = request.versions
    if not _FEWEST_COMPARED <= len(numbers) <= _MOST_COMPARED or len(set(numbers)) < len(numbers) or min(numbers) < 1:
        wanted = f"must be {_FEWEST_COMPARED} to {_MOST_COMPARED} numbers of versions, from 1, each once"
        problems.append(("versions", wanted))
    return problems


def record_problems(request: pb.RecordEvaluationRequest, require_allowed: Callable[[str, str], str]) -> Problems:
    """What is wrong with the recording of an evaluation. Takes what `register_problems` does."""
    return [
        *_model_name_problems(request.model_name),
        *_version_problems(request.version),
        *_uri_problems("evaluation_uri", request.evaluation_uri, require_allowed),
    ]


def set_label_problems(request: pb.SetLabelRequest) -> Problems:
    """What is wrong with the setting of a label."""
    return [
        *_model_name_problems(request.model_name),
        *_version_problems(request.version),
        *_label_problems(request.label),
        *_actor_problems(request.actor),
        *_reason_problems(request.reason),
    ]


def clear_label_problems(request: pb.ClearLabelRequest) -> Problems:
    """What is wrong with the clearing of a label."""
    return [
        *_model_name_problems(request.model_name),
        *_label_problems(request.label),
        *_actor_problems(request.actor),
        *_reason_problems(request.reason),
    ]


def list_label_changes_problems(request: pb.ListLabelChangesRequest) -> Problems:
    """What is wrong with a look at the changes of labels."""
    return _model_name_problems(request.model_name) + (_label_problems(request.label) if request.label else [])


def delete_problems(request: pb.DeleteModelVersionRequest) -> Problems:
    """What is wrong with the deletion of a version."""
    return _model_name_problems(request.model_name) + _version_problems(request.version)


def require(problems: Problems) -> None:
    """Raises InvalidRequest when there are problems."""
    if problems:
        raise InvalidRequest(problems)


def _uri_problems(field: str, uri: str, require_allowed: Callable[[str, str], str]) -> Problems:
    try:
        require_allowed(field, uri)
    except InvalidRequest as error:
        return list(error.violations)
    return []


def _model_name_problems(name: str) -> Problems:
    if not name:
        return [("model_name", "is required")]
    if _MODEL_NAME.fullmatch(name) and name.strip(" ."):
        return []
    return [("model_name", "must be letters, digits, '_', '-', '.' and spaces, 1 to 200 characters, and not blank")]


def _label_problems(label: str) -> Problems:
    if not label:
        return [("label", "is required")]
    if not _LABEL.fullmatch(label):
        return [("label", "must be letters, digits, '_' and '-', 255 characters at most")]
    if _RESERVED_LABEL.fullmatch(label):
        return [("label", "must not be 'latest' or 'v' with digits, which MLflow reserves")]
    return []


def _gate_problems(request: pb.RegisterModelRequest) -> Problems:
    gate = request.label_gate
    limited = gate.HasField("max_validation_loss")
    problems: Problems = []
    if not request.label:
        problems.append(("label", "is required with label_gate"))
    if not limited and not gate.better_than_holder:
        problems.append(("label_gate", "needs max_validation_loss, better_than_holder or both"))
    if limited and not 0 < gate.max_validation_loss < math.inf:
        problems.append(("label_gate.max_validation_loss", "must be a number over 0"))
    return problems


def _version_problems(version: int) -> Problems:
    return [] if version > 0 else [("version", "is required, and counts from 1")]


def _actor_problems(actor: str) -> Problems:
    if not actor.strip():
        return [("actor", "is required")]
    return [] if len(actor) <= _LONGEST_ACTOR else [("actor", f"must have {_LONGEST_ACTOR} characters at most")]


def _reason_problems(reason: str) -> Problems:
    return [] if len(reason) <= _LONGEST_REASON else [("reason", f"must have {_LONGEST_REASON} characters at most")]


def _tag_problems(tags: Mapping[str, str]) -> Problems:
    problems: Problems = []
    if len(tags) > _MOST_TAGS:
        problems.append(("tags", f"must be {_MOST_TAGS} at most"))
    for name, value in sorted(tags.items()):
        if not _TAG_NAME.fullmatch(name):
            problems.append(
                ("tags", f"{name[:50]!r}: a name must be letters, digits and '_-.:/ ', 1 to 250 characters")
            )
        elif _OWN_TAG.fullmatch(name):
            problems.append(("tags", f"{name!r} is a name of the pipeline's or MLflow's own: choose another"))
        if len(value) > _LONGEST_TAG:
            problems.append(("tags", f"{name[:50]!r}: a value must have {_LONGEST_TAG} characters at most"))
    return problems
