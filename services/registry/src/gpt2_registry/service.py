"""The gRPC face of the registry. Translates messages; decides nothing."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import grpc.aio
import sqlalchemy as sql
from google.protobuf.json_format import ParseDict

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2.registry.v1 import registry_service_pb2_grpc
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import Unavailable
from gpt2_common.events.cloudevent import CloudEvent
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.service import page_size
from gpt2_common.server import ServiceDefinition, ServiceSurroundings
from gpt2_registry import validation
from gpt2_registry.comparison import compare
from gpt2_registry.evaluations import Evaluation, Measurement, evaluations, record
from gpt2_registry.jobs import REGISTER_MODEL
from gpt2_registry.labels import LabelChange, Labels
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.rules import LabelRules
from gpt2_registry.settings import RegistrySettings

_CALL_SECONDS = 60.0

Result = TypeVar("Result")


class RegistryServicer(registry_service_pb2_grpc.RegistryServiceServicer):
    """Serves gpt2.registry.v1.RegistryService.

    Args:
        jobs: Where jobs are started.
        artifacts: Which URIs are allowed.
        registry: The models.
        labels: Their labels.
        rules: Which labels there are.
    """

    def __init__(
        self, jobs: JobManager, artifacts: ArtifactStore, registry: MlflowRegistry, labels: Labels, rules: LabelRules
    ) -> None:
        self._jobs = jobs
        self._artifacts = artifacts
        self._registry = registry
        self._labels = labels
        self._rules = rules

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.RegisterModelResponse:  # noqa: ARG002
        """Starts a registration."""
        problems = validation.register_problems(request, self._artifacts.require_allowed)
        if request.label and not problems:
            self._rules.require_known(request.label)
        return pb.RegisterModelResponse(job=await self._jobs.start(REGISTER_MODEL, request, problems))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.GetModelVersionResponse:  # noqa: ARG002
        """Returns one version."""
        validation.require(validation.get_problems(request))
        version = await _in_thread(self._get, request)
        return pb.GetModelVersionResponse(model_version=_message(version))

    async def ListModelVersions(
        self,
        request: pb.ListModelVersionsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListModelVersionsResponse:
        """Lists versions, newest first."""
        validation.require(validation.list_problems(request))
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
        """Puts versions side by side."""
        validation.require(validation.compare_problems(request))
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
                    figures=[pb.ComparedMetric(name=name, values=values) for name, values in item.figures],
                )
                for item in found.evaluations
            ],
        )

    async def RecordEvaluation(
        self,
        request: pb.RecordEvaluationRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.RecordEvaluationResponse:
        """Records what was measured of a version's model."""
        validation.require(validation.record_problems(request, self._artifacts.require_allowed))
        version = await _in_thread(self._record, request)
        return pb.RecordEvaluationResponse(model_version=_message(version))

    async def SetLabel(self, request: pb.SetLabelRequest, context: Any) -> pb.SetLabelResponse:  # noqa: ARG002
        """Gives a label to a version."""
        validation.require(validation.set_label_problems(request))
        previous = await _in_thread(self._labels.set, _change(request), request.version)
        version = await _in_thread(self._registry.version, request.model_name, request.version)
        return pb.SetLabelResponse(model_version=_message(version), previous_version=previous)

    async def ClearLabel(self, request: pb.ClearLabelRequest, context: Any) -> pb.ClearLabelResponse:  # noqa: ARG002
        """Takes a label away."""
        validation.require(validation.clear_label_problems(request))
        return pb.ClearLabelResponse(previous_version=await _in_thread(self._labels.clear, _change(request)))

    async def ListLabelChanges(
        self,
        request: pb.ListLabelChangesRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListLabelChangesResponse:
        """Lists the changes of labels, newest first."""
        validation.require(validation.list_label_changes_problems(request))
        entries = await _in_thread(self._labels.history, request.model_name, request.label)
        return pb.ListLabelChangesResponse(changes=[ParseDict(entry, pb.LabelChange()) for entry in entries])

    async def DeleteModelVersion(
        self,
        request: pb.DeleteModelVersionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.DeleteModelVersionResponse:
        """Deletes a version that holds no label."""
        validation.require(validation.delete_problems(request))
        await _in_thread(self._labels.delete_version, request.model_name, request.version)
        return pb.DeleteModelVersionResponse()

    def _record(self, request: pb.RecordEvaluationRequest) -> RegisteredVersion:
        evaluation = self._artifacts.open("evaluation_uri", request.evaluation_uri, "evaluation", verify=True)
        now = time.time_ns() // 1_000_000
        record(self._registry, request.model_name, request.version, evaluation, now)
        return self._registry.version(request.model_name, request.version)

    def _get(self, request: pb.GetModelVersionRequest) -> RegisteredVersion:
        if request.WhichOneof("selector") == "label":
            return self._registry.version_by_label(request.model_name, request.label)
        return self._registry.version(request.model_name, request.version)


async def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls what asks MLflow in a thread. Raises Unavailable when MLflow is too slow."""
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            return await asyncio.to_thread(function, *arguments)
    except TimeoutError:
        raise Unavailable(
            f"MLflow did not answer in {_CALL_SECONDS:.0f} s: look at its load, or at GPT2_MLFLOW_TRACKING_URI"
        ) from None


def _change(request: pb.SetLabelRequest | pb.ClearLabelRequest) -> LabelChange:
    return LabelChange(model_name=request.model_name, label=request.label, actor=request.actor, reason=request.reason)


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
        figures=evaluation.figures,
        evaluation_uri=evaluation.evaluation_uri,
    )
    message.record_time.FromMilliseconds(evaluation.recorded_millis)
    return message


def _measurement(measurement: Measurement) -> pb.Measurement:
    return pb.Measurement(**asdict(measurement))


def _publisher(engine: sql.Engine, wake_relay: Callable[[], None]) -> Callable[[CloudEvent], None]:
    def publish(event: CloudEvent) -> None:
        with engine.begin() as connection:
            add_to_outbox(connection, event)
        wake_relay()

    return publish


def _add_servicer(surroundings: ServiceSurroundings[RegistrySettings], server: grpc.aio.Server) -> RegistryServicer:
    registry = MlflowRegistry(MlflowConnection(surroundings.settings.mlflow_tracking_uri))
    rules = LabelRules.parse(surroundings.settings.label_rules)
    labels = Labels(registry, rules, _publisher(surroundings.engine, surroundings.wake_relay))
    servicer = RegistryServicer(surroundings.jobs, surroundings.artifacts, registry, labels, rules)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    return servicer


REGISTRY = ServiceDefinition(
    name="registry",
    grpc_service=pb.DESCRIPTOR.services_by_name["RegistryService"].full_name,
    settings=RegistrySettings,
    kinds=(REGISTER_MODEL,),
    add_servicer=_add_servicer,
)
