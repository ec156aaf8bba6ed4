"""The gate before a label: what a version that was just registered must fulfil to be given the label it asks for."""

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_registry.mlflow_registry import RegisteredVersion

_ENDED_WORSE = "gpt2.ended_worse"
_TOKENIZER = "gpt2.tokenizer_digest"


def ruin(request: pb.RegisterModelRequest, version: RegisteredVersion) -> str:
    """Why a version of a ruined training does not get the label; empty where it may."""
    if request.label_despite_worse_end or version.tags.get(_ENDED_WORSE, "").lower() != "true":
        return ""
    return (
        "its training ended with a worse validation loss than it began with: set it with SetLabel once the model is "
        "found good, or register with label_despite_worse_end"
    )


def refusal(gate: pb.LabelGate, version: RegisteredVersion, holder: RegisteredVersion | None) -> str:
    """Why a version does not pass; empty where it does.

    Args:
        gate: The conditions.
        version: The version that asks for the label.
        holder: The version that holds it, if any.
    """
    if not gate.HasField("max_validation_loss") and not gate.better_than_holder:
        return ""
    loss = version.validation_loss
    if loss is None:
        return "its validation loss is not known"
    if gate.HasField("max_validation_loss") and loss > gate.max_validation_loss:
        return f"its validation loss of {loss:.6g} is over the {gate.max_validation_loss:.6g} allowed"
    if gate.better_than_holder and holder is not None and holder.version != version.version:
        return _not_better(version, loss, holder)
    return ""


def _not_better(version: RegisteredVersion, loss: float, holder: RegisteredVersion) -> str:
    held = holder.validation_loss
    if held is None:
        return f"the validation loss of version {holder.version}, which holds the label, is not known"
    if version.tags.get(_TOKENIZER) != holder.tags.get(_TOKENIZER):
        return f"version {holder.version}, which holds the label, has another tokenizer: their losses do not compare"
    if loss >= held:
        return f"its validation loss of {loss:.6g} is not under the {held:.6g} of version {holder.version}"
    return ""
