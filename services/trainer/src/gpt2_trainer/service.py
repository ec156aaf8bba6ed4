"""The trainer's gRPC face. Translates messages; decides nothing."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2.trainer.v1 import trainer_service_pb2_grpc
from gpt2_common.errors import InvalidRequest, NotFound
from gpt2_common.jobs.definition import JobKind
from gpt2_common.server import ServiceDefinition, ServiceSurroundings
from gpt2_trainer import requests
from gpt2_trainer.admission import admission_problems
from gpt2_trainer.generation.messages import GenerationTask
from gpt2_trainer.generation.pool import GenerationPool
from gpt2_trainer.heap import KEPT_HEAP
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training_requests import device_problems, train_problems, trainjob_problems
from gpt2_trainer.trainjobs.launching import sweep_trainjobs, trainer_launcher

IMPORT_CHECKPOINT = JobKind(
    name="ImportCheckpoint",
    request=pb.ImportCheckpointRequest,
    function="gpt2_trainer.jobs.import_checkpoint:import_checkpoint",
    settings=TrainerSettings,
)
TRAIN_MODEL = JobKind(
    name="TrainModel",
    request=pb.TrainModelRequest,
    function="gpt2_trainer.jobs.train:train_model",
    settings=TrainerSettings,
    environment=KEPT_HEAP,
    inputs={"dataset_uri": "dataset", "checkpoint_uri": "checkpoint"},
)
EXPORT_MODEL = JobKind(
    name="ExportModel",
    request=pb.ExportModelRequest,
    function="gpt2_trainer.jobs.export:export_model",
    settings=TrainerSettings,
    inputs={"checkpoint_uri": "checkpoint"},
)
EVALUATE_MODEL = JobKind(
    name="EvaluateModel",
    request=pb.EvaluateModelRequest,
    function="gpt2_trainer.jobs.evaluate:evaluate_model",
    settings=TrainerSettings,
)

_DEFAULT_TOKENS = 128


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """Serves gpt2.trainer.v1.TrainerService.

    Args:
        surroundings: Jobs and artifacts of the service.
        pool: Generates text.
    """

    def __init__(self, surroundings: ServiceSurroundings[TrainerSettings], pool: GenerationPool) -> None:
        self._jobs = surroundings.jobs
        self._artifacts = surroundings.artifacts
        self._settings = surroundings.settings
        self._pool = pool

    async def ImportCheckpoint(self, request: pb.ImportCheckpointRequest, context: Any) -> pb.ImportCheckpointResponse:  # noqa: ARG002
        """Starts an import."""
        job = await self._jobs.start(IMPORT_CHECKPOINT, request, requests.import_problems(request))
        return pb.ImportCheckpointResponse(job=job)

    async def TrainModel(self, request: pb.TrainModelRequest, context: Any) -> pb.TrainModelResponse:  # noqa: ARG002
        """Starts a training."""
        problems = train_problems(request) + device_problems(request, self._settings.keras_backend)
        if self._settings.training_backend == "trainjob":
            problems += trainjob_problems(request, self._settings.trainjob_gpus)
        if not problems and not await self._exists(request.job.job_id):
            memory = self._settings.admitted_bytes
            problems = await asyncio.to_thread(admission_problems, request, self._artifacts, memory)
        job = await self._jobs.start(TRAIN_MODEL, request, problems)
        return pb.TrainModelResponse(job=job)

    async def _exists(self, job_id: str) -> bool:
        """Whether a start call is a repeated one: its job is there, whatever has become of its inputs."""
        try:
            return bool(job_id) and bool(await self._jobs.get(job_id))
        except NotFound:
            return False

    async def ExportModel(self, request: pb.ExportModelRequest, context: Any) -> pb.ExportModelResponse:  # noqa: ARG002
        """Starts an export."""
        job = await self._jobs.start(EXPORT_MODEL, request, requests.export_problems(request))
        return pb.ExportModelResponse(job=job)

    async def EvaluateModel(self, request: pb.EvaluateModelRequest, context: Any) -> pb.EvaluateModelResponse:  # noqa: ARG002
        """Starts an evaluation."""
        job = await self._jobs.start(EVALUATE_MODEL, request, requests.evaluation_problems(request))
        return pb.EvaluateModelResponse(job=job)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: ARG002
        """Streams text."""
        if problems := requests.generate_problems(request):
            raise InvalidRequest(problems)
        model = await asyncio.to_thread(self._artifacts.open, "model_uri", request.model_uri, "model")
        # Closed at once when the call is cancelled, so that the work stops then and not when memory is tidied up.
        async with aclosing(self._pool.generate(model.digest, model.folder, _task(request))) as pieces:
            async for piece in pieces:
                yield pb.GenerateResponse(
                    sample=piece.sample,
                    text=piece.text,
                    finish_reason=pb.GenerateResponse.FinishReason.ValueType(piece.finish_reason),
                    prompt=piece.prompt,
                )


def _task(request: pb.GenerateRequest) -> GenerationTask:
    return GenerationTask(
        prompts=tuple(request.prompts) or (request.prompt,),
        max_tokens=request.max_tokens or _DEFAULT_TOKENS,
        samples=request.samples or 1,
        sampling=requests.sampling_options(request.sampling),
        seed=request.seed if request.HasField("seed") else secrets.randbits(63),
        stops=tuple(request.stop),
    )


def _add_servicer(surroundings: ServiceSurroundings[TrainerSettings], server: grpc.aio.Server) -> TrainerServicer:
    settings = surroundings.settings
    pool = GenerationPool(
        settings.generate_backend,
        settings.generate_precision,
        settings.generate_idle_seconds,
        settings.generate_models,
    )
    surroundings.on_stop.callback(pool.close)
    if settings.training_backend == "trainjob":
        sweep = asyncio.create_task(sweep_trainjobs(settings, surroundings.jobs))
        surroundings.on_stop.callback(sweep.cancel)
    servicer = TrainerServicer(surroundings, pool)
    trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)
    return servicer


TRAINER = ServiceDefinition(
    name="trainer",
    grpc_service=pb.DESCRIPTOR.services_by_name["TrainerService"].full_name,
    settings=TrainerSettings,
    kinds=(IMPORT_CHECKPOINT, TRAIN_MODEL, EXPORT_MODEL, EVALUATE_MODEL),
    add_servicer=_add_servicer,
    launcher=trainer_launcher,
)
