"""What Kubernetes says of a TrainJob and its pod, in words for the job's caller."""

from collections.abc import Iterable, Mapping
from typing import Any

from google.rpc import code_pb2, status_pb2

_LONGEST_WORDS = 4000
_LONGEST_REASON = 200


def ended_condition(trainjob: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition that says that a TrainJob has ended; None while it has not."""
    conditions: list[Mapping[str, Any]] = trainjob.get("status", {}).get("conditions", [])
    ended = [item for item in conditions if item["type"] in ("Complete", "Failed") and item["status"] == "True"]
    return ended[0] if ended else None


def why_waiting(pod: Mapping[str, Any] | None) -> str:
    """Why a pod's container has not started, as a phase of the job's progress; empty when it has."""
    if pod is None:
        return "waiting for the cluster"
    status = pod.get("status", {})
    state = _container(pod).get("state", {})
    if "running" in state or "terminated" in state:
        return ""
    unscheduled = [item for item in status.get("conditions", []) if item.get("status") == "False" and "message" in item]
    waiting = state.get("waiting", {})
    reasons = [waiting["reason"]] if "reason" in waiting else [str(item["message"]) for item in unscheduled]
    return f"waiting for the cluster ({reasons[0][:_LONGEST_REASON]})" if reasons else "waiting for the cluster"


def failure_of(ended: Mapping[str, Any], pod: Mapping[str, Any] | None, last_words: Iterable[str]) -> status_pb2.Status:
    """The error of a job whose TrainJob has ended without a word on its result.

    Args:
        ended: The condition that says so.
        pod: The TrainJob's last pod, where it is still there.
        last_words: Last lines of its log.
    """
    state = _container(pod or {}).get("state", {}).get("terminated", {})
    how = f"{state.get('reason', '')}, exit status {state.get('exitCode', '')}" if state else "no container has run"
    words = "\n".join(last_words)[-_LONGEST_WORDS:]
    message = (
        f"the TrainJob ended without a result ({ended.get('reason', '')}: {ended.get('message', '')}; {how}). "
        f"Its last words:\n{words}"
    )
    if state.get("reason") == "OOMKilled":
        advice = "the TrainJob ran out of memory: choose smaller sizes or a larger GPT2_TRAINJOB_MEMORY, and retry. "
        return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=advice + message)
    return status_pb2.Status(code=code_pb2.INTERNAL, message=message)


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses: list[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses", [])
    return next((item for item in statuses if item.get("name") == "node"), {})
