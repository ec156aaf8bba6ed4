"""TrainModel: an attempt of a training on one node, from its inputs to its outputs."""

import json
import logging
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts.claim import CLAIM_FILE
from gpt2_common.errors import FailedPrecondition, InvalidRequest, JobSuspended
from gpt2_common.jobs.context import JobContext, output
from gpt2_contracts.artifact import CHECKPOINT, LOGS, SAMPLES
from gpt2_contracts.training import SAMPLES_PATTERN
from gpt2_rules import violations
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import (
    Checkpoint,
    TrainingState,
)
from gpt2_trainer.formats.tokenizer_files import token_bytes
from gpt2_trainer.jobs.backend_chooser import BackendChooser
from gpt2_trainer.jobs.training_inputs import RESOLVED_CONFIG, TrainingInputs
from gpt2_trainer.jobs.training_outputs import publish_checkpoint
from gpt2_trainer.memory import device_memory, memory_problems
from gpt2_trainer.model.backend import device_names, select_backend
from gpt2_trainer.model.compile_cache import CompileCache
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.checkpoint_manager import CheckpointManager
from gpt2_trainer.training.data import TrainingData, ValidationData
from gpt2_trainer.training.metrics_log import MetricsLog, NoMetricsLog
from gpt2_trainer.training.mfu import flops_per_token, peak_flops
from gpt2_trainer.training.nodes import Nodes, checksum_of, join_nodes
from gpt2_trainer.training.rank import Rank
from gpt2_trainer.validation import backend_problems, train_problems

_log = logging.getLogger(__name__)
_CHECKPOINTS = "checkpoints"


def train_model(request: pb.TrainModelRequest, context: JobContext[TrainerSettings]) -> list[artifact_pb2.Artifact]:
    """Trains a model, on one of several nodes where the environment says so.

    Returns:
        The outputs `checkpoint` (the best by validation loss; in `last` the last step, where that is another), `logs`
        and `samples`. Of several nodes, the first one returns them.

    Raises:
        PipelineError: The request does not fit its inputs, or the training diverged.
        JobSuspended: Another node has ended; all of them resume in another attempt.
    """
    problems = backend_problems(request, context.settings.keras_backend)
    if not (context.work / RESOLVED_CONFIG).exists():
        problems = (violations(request) or train_problems(request)) + problems
    if problems:
        raise InvalidRequest(problems)
    rank = Rank.of(os.environ, request.config.num_nodes)
    asked = request.config.num_nodes or 1
    if rank.count != asked and rank.is_first:
        context.warn(f"config.num_nodes: {asked} nodes are asked for, and the training runs on {rank.count}")
    if rank.count > 1:
        if context.settings.keras_backend == "tensorflow":
            raise FailedPrecondition("GPT2_KERAS_BACKEND: is tensorflow, and several nodes need jax; set it to jax")
        if (outputs := _published(context)) is not None:
            return outputs
    return _Training(request, context, rank).run()


def _published(context: JobContext[TrainerSettings]) -> list[artifact_pb2.Artifact] | None:
    """The outputs of a training whose nodes had published them before one of them was lost; None: not all are there."""
    found = [(name, context.committed(name, name)) for name in (CHECKPOINT, LOGS, SAMPLES)]
    outputs = [output(name, artifact) for name, artifact in found if artifact is not None]
    return outputs if len(outputs) == len(found) else None


class _Training:
    """One attempt of one training, on one node."""

    def __init__(self, request: pb.TrainModelRequest, context: JobContext[TrainerSettings], rank: Rank) -> None:
        self._context = context
        self._rank = rank
        context.report("opening")
        self._inputs = TrainingInputs(request, context)

    def run(self) -> list[artifact_pb2.Artifact]:
        """Trains and publishes."""
        architecture = self._inputs.architecture()
        config = self._inputs.config(architecture, is_first=self._rank.is_first)
        memory = device_memory(self._context.settings.device_memory_bytes)
        if problems := memory_problems(architecture, config, memory):
            raise InvalidRequest(problems)
        data = self._inputs.data(config)
        subject = f"train {json.dumps(architecture.to_json(), sort_keys=True)}"
        chooser = BackendChooser(self._context, self._inputs.identity, self._rank)
        begun = any((self._context.work / _CHECKPOINTS).glob("step-*"))
        continued = self._inputs.continued_backend
        choice = chooser.choose(
            architecture, config, subject, is_on_cpu=memory.is_host, begun=begun, continued=continued
        )
        options = self._context.settings.compile_cache
        programs = CompileCache(options, choice.backend, subject, keep_tensorflow=memory.is_host)
        # Keras is imported only here, when the inputs are known to be right: it takes seconds.
        select_backend(choice.backend)
        nodes = self._join()
        try:
            return self._run(architecture, config, data, programs, nodes)
        except Exception as error:
            if not nodes.is_lost(error):
                raise
            _log.warning("another node of this training has ended, and this one ends too, to resume: %s", error)
            raise JobSuspended("another node of this training has ended") from error

    def _join(self) -> Nodes:
        """Waits for the other nodes, where there are any."""
        rank, settings = self._rank, self._context.settings
        if rank.count == 1:
            return Nodes()
        self._context.report(f"waiting for {rank.count} nodes")
        check = self._context.check_cancelled
        return join_nodes(rank, settings.node_start_seconds, settings.node_heartbeat_seconds, check)

    def _join_attempt(self, nodes: Nodes) -> None:
        """Makes this node part of the attempt that the first one has begun."""
        token = nodes.text_from_first(self._context.claim_token)
        if nodes.is_first:
            return
        if token and not (self._context.work / CLAIM_FILE).exists():
            raise FailedPrecondition(
                f"GPT2_ARTIFACT_ROOT: node {self._rank.index} does not see in {self._context.work} what node 0 has "
                "written there; give all nodes the same shared folder, with an object store as GPT2_SCRATCH_FOLDER"
            )
        self._context.join(token)

    def _run(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        data: tuple[TrainingData, ValidationData],
        programs: CompileCache,
        nodes: Nodes,
    ) -> list[artifact_pb2.Artifact]:
        """Trains with the other nodes; the first one publishes."""
        self._join_attempt(nodes)
        checkpoints = CheckpointManager(
            self._context.work / _CHECKPOINTS,
            config.keep_checkpoints,
            self._inputs.tokenizer,
            self._context.require_claim,
            is_reader=not nodes.is_first,
        )
        start = self._start(architecture, config, checkpoints, nodes)
        if not nodes.is_first:
            self._train(config, start, data, checkpoints, NoMetricsLog(), None, programs, nodes)
            nodes.wait_for_all()
            return []
        parents = self._inputs.artifacts
        with (
            self._context.create_in_place(LOGS, LOGS, parents) as logs_writer,
            self._context.create_in_place(SAMPLES, SAMPLES, parents) as samples_writer,
        ):
            logs = MetricsLog(logs_writer.folder, start.state.step)
            state = self._train(config, start, data, checkpoints, logs, samples_writer.folder, programs, nodes)
            logs.close()
            published = publish_checkpoint(self._context, self._inputs, config, architecture, state, checkpoints)
            samples_count = len(list(samples_writer.folder.glob(SAMPLES_PATTERN)))
            outputs = [
                output(CHECKPOINT, published),
                output(LOGS, logs_writer.commit({"steps": state.step})),
                output(SAMPLES, samples_writer.commit({"files": samples_count})),
            ]
        nodes.wait_for_all()
        return outputs

    def _start(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        checkpoints: CheckpointManager,
        nodes: Nodes,
    ) -> Checkpoint:
        """What the attempt starts with on every node: the newest checkpoint, or the state before the first update."""
        newest = checkpoints.newest() if nodes.is_first else None
        if newest is not None and newest.state.dataset_digest != self._inputs.dataset.digest:
            raise FailedPrecondition(
                "dataset_uri: the dataset was recreated since this training began; start a new job, to train on one "
                "dataset"
            )
        step = nodes.from_first(newest.state.step if newest else -1)
        if not nodes.is_first and step >= 0:
            newest = checkpoints.read(step)
        start = newest or self._inputs.initial_checkpoint(architecture, config)
        if self._rank.count > 1:
            nodes.require_equal(
                {
                    "dataset": zlib.crc32(self._inputs.dataset.digest.encode()),
                    "configuration": zlib.crc32(json.dumps(config.to_json(), sort_keys=True).encode()),
                    "state": zlib.crc32(json.dumps(start.state.to_json(), sort_keys=True).encode()),
                    "weight": checksum_of({**start.weights, **start.adapters, **start.slots}),
                }
            )
        return start

    def _train(
        self,
        config: ResolvedTrainingConfig,
        start: Checkpoint,
        data: tuple[TrainingData, ValidationData],
        checkpoints: CheckpointManager,
        logs: MetricsLog,
        samples_folder: Path | None,
        programs: CompileCache,
        nodes: Nodes,
    ) -> TrainingState:
        # They import Keras.
        from gpt2_trainer.generation.text import TextCodec
        from gpt2_trainer.training.callbacks import Checkpointer, FreezingReporter, MetricsReporter, Validator
        from gpt2_trainer.training.limits import EarlyStopping, SkippedUpdateLimit, StepLimit, TimeLimit
        from gpt2_trainer.training.loop import TrainingLoop
        from gpt2_trainer.training.samples import SampleWriter

        logs.log_hyperparameters(self._context.job_id, config.hyperparameters())
        codec = TextCodec(self._inputs.tokenizer_folder, start.architecture.end_token_id)
        train, validation = data
        devices = device_names()[: config.devices] * self._rank.count
        callbacks = [
            SkippedUpdateLimit(checkpoints),
            StepLimit(),
            TimeLimit(),
            EarlyStopping(),
            FreezingReporter(),
            MetricsReporter(
                logs,
                train,
                flops_per_token(start.architecture, config.context_length),
                peak_flops(devices, config.precision, self._context.settings.device_peak_flops),
            ),
            Validator(validation, logs, self._bytes_per_token(validation)),
            SampleWriter(start.architecture, config, codec, samples_folder, logs),
            Checkpointer(checkpoints),
        ]

        def report(phase: str, step: int, metrics: Mapping[str, float]) -> None:
            # At once, as the next attempt needs them if this one crashes.
            programs.publish()
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self._context.report(phase, step, config.steps, "steps", finite)

        self._context.report("compiling", start.state.step, config.steps, "steps")
        loop = TrainingLoop(config, start, train, callbacks, report, self._context.check_cancelled, nodes)
        state = loop.run()
        programs.publish()
        return state

    def _bytes_per_token(self, validation: ValidationData) -> float:
        """Mean bytes of text of a validation's targets; 0 where the dataset carries no tokenizer."""
        if self._inputs.tokenizer is None:
            return 0.0
        vocabulary_size = self._inputs.description.vocabulary_size
        return validation.bytes_per_token(token_bytes(self._inputs.tokenizer, vocabulary_size))
