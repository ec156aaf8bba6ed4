"""The TrainJob of a training, as Kubernetes takes it."""

import hashlib
import json
import re
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.messages import encode_task
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.settings import PREFIX
from gpt2_trainer.settings import TrainerSettings

JOB_ID = "gpt2/job-id"
REQUEST_DIGEST = "gpt2/request-digest"
TASK_VARIABLE = "GPT2_TRAINJOB_TASK"
MANAGED_BY = "gpt2-trainer"
"""Value of the label `app.kubernetes.io/managed-by` of each TrainJob."""
_MAX_SLUG_LENGTH = 24
_PASSED_ON = (
    "artifact_root",
    "allowed_roots",
    "scratch_folder",
    "log_level",
    "device_memory_bytes",
    "device_peak_flops",
    "node_start_seconds",
    "node_heartbeat_seconds",
)
"""Settings that a training must see as the service does. No secret is among them."""


def trainjob_name(job_id: str) -> str:
    """A job's TrainJob: always the same name, at most 40 characters, as the names of its pods are longer."""
    slug = re.sub(r"[^a-z0-9]+", "-", job_id.lower())[:_MAX_SLUG_LENGTH].strip("-")
    return f"gpt2-{slug}-{hashlib.sha256(job_id.encode()).hexdigest()[:10]}"


def describe_trainjob(settings: TrainerSettings, kind: JobKind, stored: StoredJob) -> dict[str, Any]:
    """The object that is created for a job. The runtime adds volumes, node selectors and rights."""
    runtime_kind, _, runtime_name = settings.trainjob_runtime.partition("/")
    request = pb.TrainModelRequest.FromString(stored.request)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": trainjob_name(stored.job.job_id),
            "labels": {"app.kubernetes.io/managed-by": MANAGED_BY},
            "annotations": {
                JOB_ID: stored.job.job_id,
                "gpt2/run-id": stored.job.run_id,
                REQUEST_DIGEST: stored.job.request_digest,
            },
        },
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": runtime_kind, "name": runtime_name},
            "trainer": {
                "image": settings.trainjob_image,
                "command": ["python", "-m", "gpt2_trainer.trainjobs.pod"],
                "numNodes": request.config.num_nodes or 1,
                "env": _variables(settings, kind, stored, request),
                "resourcesPerNode": _resources(settings),
            },
        },
    }


def _variables(
    settings: TrainerSettings, kind: JobKind, stored: StoredJob, request: pb.TrainModelRequest
) -> list[dict[str, Any]]:
    # The plan of a run is for the service, and may be longer than a variable can be.
    request.ClearField("job")
    task = encode_task(kind, stored.job, request.SerializeToString(deterministic=True))
    plain = dict(kind.work.environment)
    plain |= {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in _PASSED_ON}
    plain[f"{PREFIX}KERAS_BACKEND"] = settings.trainjob_backend
    plain[TASK_VARIABLE] = json.dumps(task)
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for variable, (secret, key) in settings.secret_references.items()
    ]
    return [*({"name": name, "value": value} for name, value in plain.items()), *secrets]


def _resources(settings: TrainerSettings) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(settings.trainjob_gpus)} if settings.trainjob_gpus else {}
    return {
        "requests": {"cpu": settings.trainjob_cpu, "memory": settings.trainjob_memory, **gpus},
        "limits": {"memory": settings.trainjob_memory, **gpus},
    }
