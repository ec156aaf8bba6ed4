"""The registry as a service: its stage, the checks of it, and its other gRPC calls."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import sqlalchemy as sql
from google.protobuf.json_format import ParseDict

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import Unavailable
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.identity import current_caller
from gpt2_common.jobs.checks import StageChecks
from gpt2_common.jobs.definition import Work
from gpt2_common.jobs.service import page_size
from gpt2_common.server import ServiceContext, ServiceDefinition
from gpt2_contracts.artifact import EVALUATION
from gpt2_contracts.evaluation import Measurement
from gpt2_contracts.events import CloudEvent
from gpt2_registry import validation
from gpt2_registry.comparison import compare
from gpt2_registry.evaluations import Evaluation, evaluations, record
from gpt2_registry.label_lock import LabelLock
from gpt2_registry.label_rules import LabelRules
from gpt2_registry.labels import LabelChange, Labels
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.settings import RegistrySettings

_CALL_SECONDS = 60.0

Result = TypeVar("Result")


class RegistryServicer:
    """Answers the calls of gpt2.registry.v1.RegistryService that start no job.

    Args:
        artifacts: Which URIs are allowed.
        registry: The models.
        labels: Their labels.
    """

    def __init__(self, artifacts: ArtifactStore, registry: MlflowRegistry, labels: Labels) -> None:
        self._artifacts = artifacts
        self._registry = registry
        self._labels = labels

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.GetModelVersionResponse:  # noqa: ARG002
        """Returns one version."""
        version = await _in_thread(self._get, request)
        return pb.GetModelVersionResponse(model_version=_message(version))

    async def ListModelVersions(
        self,
        request: pb.ListModelVersionsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListModelVersionsResponse:
        """Lists versions, newest first."""
        size = page_size(request.page_size)
        versions, token = await _in_thread(self._registry.page, request.model_name, size, request.page_token)
        return pb.ListModelVersionsResponse(model_versions=map(_message, versions), next_page_token=token)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: ARG002
        """Lists models by name."""
        models, token = await _in_thread(self._registry.models, page_size(request.page_size), request.page_token)
        messages = (
            pb.RegisteredModel(model_name=model.model_name, labels=model.labels, latest_version=model.latest_version)
            for model in models
        )
        return pb.ListModelsResponse(models=messages, next_page_token=token)

    async def CompareModels(self, request: pb.CompareModelsRequest, context: Any) -> pb.CompareModelsResponse:  # noqa: ARG002
        """Compares versions."""
        found = await _in_thread(compare, self._registry, request.model_name, request.versions)
        return pb.CompareModelsResponse(
            model_versions=map(_message, found.versions),
            metrics=[pb.ComparedMetric(name=name, values=values) for name, values in found.metrics],
            parameters=[pb.ComparedText(name=name, values=values) for name, values in found.parameters],
            lineage=[pb.ComparedText(name=name, values=values) for name, values in found.lineage],
            samples=found.samples,
            evaluations=[
                pb.ComparedEvaluation(
                    measurement=_measurement(item.measurement),
                    metrics=[pb.ComparedMetric(name=name, values=values) for name, values in item.metrics],
                )
                for item in found.evaluations
            ],
        )

    async def RecordEvaluation(
        self,
        request: pb.RecordEvaluationRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.RecordEvaluationResponse:
        """Records an evaluation of a version's model."""
        validation.require(validation.evaluation_problems(request, self._artifacts.require_allowed))
        version = await _in_thread(self._record, request)
        return pb.RecordEvaluationResponse(model_version=_message(version))

    async def SetLabel(self, request: pb.SetLabelRequest, context: Any) -> pb.SetLabelResponse:  # noqa: ARG002
        """Sets a label on a version."""
        previous = await _in_thread(self._labels.set, _change(request), request.version)
        version = await _in_thread(self._registry.version, request.model_name, request.version)
        return pb.SetLabelResponse(model_version=_message(version), previous_version=previous)

    async def ClearLabel(self, request: pb.ClearLabelRequest, context: Any) -> pb.ClearLabelResponse:  # noqa: ARG002
        """Removes a label."""
        return pb.ClearLabelResponse(previous_version=await _in_thread(self._labels.clear, _change(request)))

    async def ListLabelChanges(
        self,
        request: pb.ListLabelChangesRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListLabelChangesResponse:
        """Lists the changes of labels, newest first."""
        entries = await _in_thread(self._labels.history, request.model_name, request.label)
        return pb.ListLabelChangesResponse(changes=[ParseDict(entry, pb.LabelChange()) for entry in entries])

    async def DeleteModelVersion(
        self,
        request: pb.DeleteModelVersionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.DeleteModelVersionResponse:
        """Deletes a version that has no label."""
        await _in_thread(self._labels.delete_version, request.model_name, request.version)
        return pb.DeleteModelVersionResponse()

    def _record(self, request: pb.RecordEvaluationRequest) -> RegisteredVersion:
        evaluation = self._artifacts.open("evaluation_uri", request.evaluation_uri, EVALUATION, verify=True)
        now = time.time_ns() // 1_000_000
        record(self._registry, request.model_name, request.version, evaluation, now)
        return self._registry.version(request.model_name, request.version)

    def _get(self, request: pb.GetModelVersionRequest) -> RegisteredVersion:
        if request.WhichOneof("selector") == "label":
            return self._registry.version_by_label(request.model_name, request.label)
        return self._registry.version(request.model_name, request.version)


async def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Runs a function that calls MLflow in a thread. Raises Unavailable when MLflow is too slow."""
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            return await asyncio.to_thread(function, *arguments)
    except TimeoutError:
        raise Unavailable(
            f"MLflow did not answer in {_CALL_SECONDS:.0f} s: check its load, or "
            "set GPT2_MLFLOW_TRACKING_URI to another server"
        ) from None


def _change(request: pb.SetLabelRequest | pb.ClearLabelRequest) -> LabelChange:
    """The change that a call requests. Raises PermissionDenied where the caller may not name another actor."""
    actor = current_caller().acting_for(request.actor.strip())
    return LabelChange(model_name=request.model_name, label=request.label, actor=actor, reason=request.reason)


def _message(version: RegisteredVersion) -> pb.ModelVersion:
    message = pb.ModelVersion(
        model_name=version.model_name,
        version=version.version,
        labels=version.labels,
        model_uri=version.uri,
        mlflow_run_id=version.run_id,
        tags=version.tags,
        metrics=version.metrics,
        evaluations=map(_evaluation, evaluations(version)),
    )
    message.create_time.FromMilliseconds(version.created_millis)
    return message


def _evaluation(evaluation: Evaluation) -> pb.Evaluation:
    message = pb.Evaluation(
        measurement=_measurement(evaluation.measurement),
        metrics=evaluation.metrics,
        evaluation_uri=evaluation.evaluation_uri,
    )
    message.record_time.FromMilliseconds(evaluation.recorded_millis)
    return message


def _measurement(measurement: Measurement) -> pb.Measurement:
    return pb.Measurement(**measurement.to_json())


def _publisher(engine: sql.Engine, wake_relay: Callable[[], None]) -> Callable[[CloudEvent], None]:
    def publish(event: CloudEvent) -> None:
        with engine.begin() as connection:
            add_to_outbox(connection, event)
        wake_relay()

    return publish


def _servicer(context: ServiceContext[RegistrySettings]) -> RegistryServicer:
    registry = MlflowRegistry(MlflowConnection(context.settings.mlflow_tracking_uri))
    rules = LabelRules.parse(context.settings.label_rules)
    lock = LabelLock(context.engine, context.settings.lease_seconds)
    labels = Labels(registry, rules, _publisher(context.engine, context.wake_relay), lock)
    return RegistryServicer(context.artifacts, registry, labels)


def _checks(settings: RegistrySettings, _artifacts: ArtifactStore) -> Mapping[str, StageChecks]:
    rules = LabelRules.parse(settings.label_rules)
    return {"RegisterModel": StageChecks(request=lambda request: validation.register_problems(request, rules))}


REGISTRY = ServiceDefinition(
    name="registry",
    grpc_service=pb.DESCRIPTOR.services_by_name["RegistryService"],
    settings=RegistrySettings,
    work={"RegisterModel": Work("gpt2_registry.jobs:register_model")},
    checks=_checks,
    servicer=_servicer,
)
