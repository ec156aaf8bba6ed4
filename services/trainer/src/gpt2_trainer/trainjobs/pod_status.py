"""The status of a TrainJob and its pods, as progress and errors of its job."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from google.rpc import code_pb2, status_pb2

from gpt2_common.jobs.messages import decode_message, encode_message
from gpt2_common.jobs.outcome import Failed

EXIT_FAILED = 1
"""Exit status of a pod whose job has failed, and would in another pod."""
_MAX_LOG_LENGTH = 4000
_MAX_REASON_LENGTH = 200
_MAX_TERMINATION_BYTES = 2800
"""Kubernetes keeps 4096 bytes of a termination message; encoded, an error is a third longer."""


def ended_condition(trainjob: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition of a TrainJob that has ended; None while it has not."""
    conditions: list[Mapping[str, Any]] = trainjob.get("status", {}).get("conditions", [])
    ended = [item for item in conditions if item["type"] in ("Complete", "Failed") and item["status"] == "True"]
    return ended[0] if ended else None


def why_waiting(pods: Iterable[Mapping[str, Any]]) -> str:
    """Why the container of one of the pods has not started, as a phase of the job's progress; empty when all have."""
    waits = [_why_waiting(pod) for pod in pods]
    return next(filter(None, waits), "") if waits else "waiting for the cluster"


def is_failed(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has ended with an error that another pod would have too."""
    return bool(_container(pod).get("state", {}).get("terminated", {}).get("exitCode") == EXIT_FAILED)


def _why_waiting(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    state = _container(pod).get("state", {})
    if "running" in state or "terminated" in state:
        return ""
    unscheduled = [item for item in status.get("conditions", []) if item.get("status") == "False" and "message" in item]
    waiting = state.get("waiting", {})
    reasons = [waiting["reason"]] if "reason" in waiting else [str(item["message"]) for item in unscheduled]
    return f"waiting for the cluster ({reasons[0][:_MAX_REASON_LENGTH]})" if reasons else "waiting for the cluster"


def failure_of(ended: Mapping[str, Any], pod: Mapping[str, Any] | None, log_lines: Iterable[str]) -> status_pb2.Status:
    """The error of a job whose TrainJob has ended without an outcome.

    Args:
        ended: Its condition.
        pod: The TrainJob's last pod, where it is still there.
        log_lines: Last lines of its log.
    """
    state = _container(pod or {}).get("state", {}).get("terminated", {})
    if (error := _error_in(state.get("message", ""))) is not None:
        return error
    how = f"{state.get('reason', '')}, exit status {state.get('exitCode', '')}" if state else "no container has run"
    log = ("\n".join(log_lines) or state.get("message", ""))[-_MAX_LOG_LENGTH:]
    message = (
        f"the TrainJob ended without a result ({ended.get('reason', '')}: {ended.get('message', '')}; {how}). "
        f"Its last log lines:\n{log}"
    )
    if state.get("reason") == "OOMKilled":
        advice = "the TrainJob ran out of memory: choose smaller sizes or a larger GPT2_TRAINJOB_MEMORY, and retry. "
        return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=advice + message)
    return status_pb2.Status(code=code_pb2.INTERNAL, message=message)


def termination_message(outcome: Failed) -> str:
    """What a pod leaves in its status for the case that its log cannot be read."""
    text = outcome.error.message.encode()[:_MAX_TERMINATION_BYTES].decode(errors="ignore")
    return json.dumps(encode_message(Failed(status_pb2.Status(code=outcome.error.code, message=text))))


def _error_in(message: str) -> status_pb2.Status | None:
    """The error in a termination message; None where it has none, as the pod was killed or its log is in it."""
    try:
        outcome = decode_message(json.loads(message))
    except Exception:  # noqa: BLE001 - any text can be there
        return None
    return outcome.error if isinstance(outcome, Failed) else None


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses: list[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses", [])
    return next((item for item in statuses if item.get("name") == "node"), {})
