"""The trainer as a service: its stages, their checks, and its other gRPC calls."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.checks import StageChecks
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceContext, ServiceDefinition
from gpt2_contracts.artifact import MODEL
from gpt2_trainer import validation
from gpt2_trainer.admission import admission_problems
from gpt2_trainer.configuration.sampling import resolve_sampling_config
from gpt2_trainer.configuration.training import Problems
from gpt2_trainer.generation.worker_messages import GenerationTask, WorkerOptions
from gpt2_trainer.generation.worker_pool import WorkerPool
from gpt2_trainer.memory import MALLOC_ENVIRONMENT
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.launcher import sweep_trainjobs, trainer_launcher

_DEFAULT_TOKENS = 128


class TrainerServicer:
    """Answers the calls of gpt2.trainer.v1.TrainerService that start no job.

    Args:
        artifacts: Where models are.
        pool: Generates text.
    """

    def __init__(self, artifacts: ArtifactStore, pool: WorkerPool) -> None:
        self._artifacts = artifacts
        self._pool = pool

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: ARG002
        """Streams text."""
        if problems := validation.generate_problems(request):
            raise InvalidRequest(problems)
        model = await asyncio.to_thread(self._artifacts.open, "model_uri", request.model_uri, MODEL)
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
        sampling=resolve_sampling_config(request.sampling),
        seed=request.seed if request.HasField("seed") else secrets.randbits(63),
        stops=tuple(request.stop),
    )


def _servicer(context: ServiceContext[TrainerSettings]) -> TrainerServicer:
    settings = context.settings
    options = WorkerOptions(
        backend=settings.generate_backend,
        precision=settings.generate_precision,
        compile_cache=settings.compile_cache,
    )
    pool = WorkerPool(options, settings.generate_idle_seconds, settings.generate_models)
    context.on_stop.push_async_callback(pool.close)
    if settings.training_backend == "trainjob":
        sweep = asyncio.create_task(sweep_trainjobs(settings, context.jobs))
        context.on_stop.callback(sweep.cancel)
    return TrainerServicer(context.artifacts, pool)


def _checks(settings: TrainerSettings, artifacts: ArtifactStore) -> Mapping[str, StageChecks]:
    def training(request: pb.TrainModelRequest) -> Problems:
        problems = validation.train_problems(request) + validation.backend_problems(request, settings.keras_backend)
        if settings.training_backend == "process":
            problems += validation.process_problems(request)
        else:
            problems += validation.trainjob_problems(request, settings.trainjob_gpus, settings.trainjob_max_nodes)
        return problems

    def training_inputs(request: pb.TrainModelRequest) -> Problems:
        return admission_problems(request, artifacts, settings.admitted_bytes)

    allowed = artifacts.require_allowed
    return {
        "ImportCheckpoint": StageChecks(request=lambda request: validation.import_problems(request, allowed)),
        "TrainModel": StageChecks(request=training, inputs=training_inputs),
        "EvaluateModel": StageChecks(request=lambda request: validation.evaluation_problems(request, allowed)),
    }


TRAINER = ServiceDefinition(
    name="trainer",
    grpc_service=pb.DESCRIPTOR.services_by_name["TrainerService"],
    settings=TrainerSettings,
    work={
        "ImportCheckpoint": Work("gpt2_trainer.jobs.import_checkpoint:import_checkpoint"),
        "TrainModel": Work("gpt2_trainer.jobs.train:train_model", environment=MALLOC_ENVIRONMENT),
        "ExportModel": Work("gpt2_trainer.jobs.export:export_model"),
        "EvaluateModel": Work("gpt2_trainer.jobs.evaluate:evaluate_model"),
    },
    checks=_checks,
    servicer=_servicer,
    launcher=trainer_launcher,
)
