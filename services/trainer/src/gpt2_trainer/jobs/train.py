"""TrainModel: opens the inputs, starts or resumes, trains, publishes the outputs."""

import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.artifacts.claim import CLAIM_FILE
from gpt2_common.durable import write_durable
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, JobSuspended
from gpt2_common.jobs.context import JobContext, output
from gpt2_contracts.artifact import CHECKPOINT, DATASET, LOGS, SAMPLES
from gpt2_contracts.dataset import SPLITS, TRAIN, VALIDATION, DatasetDescription
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_contracts.training import SAMPLES_PATTERN, TrainingResult
from gpt2_rules import violations
from gpt2_trainer.admission import NOTHING_TO_CONTINUE, admit_training, new_architecture, require_continuable
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.resolution import new_layer_sizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import (
    ADAPTER,
    CONFIG,
    LAST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Checkpoint,
    TrainingState,
    Validation,
    merged,
    read_checkpoint,
    write_checkpoint,
)
from gpt2_trainer.formats.json_files import read_json
from gpt2_trainer.formats.tokenizer_files import same_tokenizer, token_bytes
from gpt2_trainer.formats.vocabulary_padding import fit_architecture, padding_problem
from gpt2_trainer.jobs.backend_chooser import BackendChooser
from gpt2_trainer.memory import device_memory, memory_problems
from gpt2_trainer.model.backend import device_names, environment, select_backend
from gpt2_trainer.model.compile_cache import CompileCache
from gpt2_trainer.model.lora import initial_adapters
from gpt2_trainer.model.weights import count_parameters, cut_vocabulary, initial_weights
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.checkpoint_manager import CheckpointManager
from gpt2_trainer.training.data import TokenStream, TrainingData, ValidationData
from gpt2_trainer.training.metrics_log import MetricsLog, NoMetricsLog
from gpt2_trainer.training.mfu import flops_per_token, peak_flops
from gpt2_trainer.training.nodes import Nodes, checksum_of, join_nodes
from gpt2_trainer.training.rank import Rank
from gpt2_trainer.training.summary import TrainingSummary, summarize_training
from gpt2_trainer.validation import backend_problems, train_problems

_log = logging.getLogger(__name__)
_CONFIG = "config.json"
"""The resolved configuration, in the job's work folder."""
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
    if not (context.work / _CONFIG).exists():
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
        self._request = request
        self._context = context
        self._rank = rank
        context.report("opening")
        self._dataset = context.open("dataset_uri", request.dataset_uri, DATASET)
        self._description = self._dataset.read(DatasetDescription)
        self._tokenizer = self._dataset.folder / TOKENIZER_FOLDER
        self._parent: Artifact | None = None
        start = request.WhichOneof("start")
        if start in ("checkpoint_uri", "continue_uri"):
            self._parent = context.open(start, getattr(request, start), CHECKPOINT)
        self._before = _read_last(self._parent.folder) if self._parent and start == "continue_uri" else None
        self._belongs_to = {
            "request_digest": context.identity.request_digest,
            "dataset_digest": self._dataset.digest,
        }

    def run(self) -> list[artifact_pb2.Artifact]:
        """Trains and publishes."""
        architecture = self._architecture()
        config = self._config(architecture)
        memory = device_memory(self._context.settings.device_memory_bytes)
        if problems := memory_problems(architecture, config, memory):
            raise InvalidRequest(problems)
        data = self._data(config)
        subject = f"train {json.dumps(architecture.to_json(), sort_keys=True)}"
        chooser = BackendChooser(self._context, self._belongs_to, self._rank)
        begun = any((self._context.work / _CHECKPOINTS).glob("step-*"))
        continued = self._parent.manifest.properties.get("backend", "") if self._parent and self._before else ""
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
            self._tokenizer if self._tokenizer.is_dir() else None,
            self._context.require_claim,
            is_reader=not nodes.is_first,
        )
        start = self._start(architecture, config, checkpoints, nodes)
        if not nodes.is_first:
            self._train(config, start, data, checkpoints, NoMetricsLog(), None, programs, nodes)
            nodes.wait_for_all()
            return []
        parents = [self._dataset, *([self._parent] if self._parent else [])]
        with (
            self._context.create_in_place(LOGS, LOGS, parents) as logs_writer,
            self._context.create_in_place(SAMPLES, SAMPLES, parents) as samples_writer,
        ):
            logs = MetricsLog(logs_writer.folder, start.state.step)
            state = self._train(config, start, data, checkpoints, logs, samples_writer.folder, programs, nodes)
            logs.close()
            published = self._publish(config, architecture, state, checkpoints, parents)
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
        if newest is not None and newest.state.dataset_digest != self._dataset.digest:
            raise FailedPrecondition(
                "dataset_uri: the dataset was recreated since this training began; start a new job, to train on one "
                "dataset"
            )
        step = nodes.from_first(newest.state.step if newest else -1)
        if not nodes.is_first and step >= 0:
            newest = checkpoints.read(step)
        start = newest or self._first(architecture, config)
        if self._rank.count > 1:
            nodes.require_equal(
                {
                    "dataset": zlib.crc32(self._dataset.digest.encode()),
                    "configuration": zlib.crc32(json.dumps(config.to_json(), sort_keys=True).encode()),
                    "state": zlib.crc32(json.dumps(start.state.to_json(), sort_keys=True).encode()),
                    "weight": checksum_of({**start.weights, **start.adapters, **start.slots}),
                }
            )
        return start

    def _config(self, architecture: Architecture) -> ResolvedTrainingConfig:
        """The training's configuration, which its first attempt resolves and stores for all later ones.

        An upgrade between two attempts that changes a default so changes no training. The service cannot store it with
        the job: a job may be created before its dataset and checkpoint exist, whose sizes decide. The work folder is
        the same for every attempt, in a child process and in a TrainJob's pod. Of several nodes the first one stores
        it; until then the others resolve the same.
        """
        file = self._context.work / _CONFIG
        try:
            stored = read_json(file)
            if self._belongs_to.items() <= stored.items():
                return ResolvedTrainingConfig.from_json(stored["config"])
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"{file} is damaged ({error}): start the training again under another job id") from error
        before = self._before.state if self._before else None
        if before:
            require_continuable(self._request, before, self._dataset.digest)
        config = admit_training(self._request, architecture, self._description, before)
        if self._rank.is_first:
            write_durable(file, json.dumps({**self._belongs_to, "config": config.to_json()}, indent=2))
        return config

    def _architecture(self) -> Architecture:
        sizes = new_layer_sizes(self._request)
        if sizes is not None:
            return new_architecture(sizes, self._description)
        if self._parent is None:
            raise AssertionError("train_problems refuses a request without a start")
        parent = read_checkpoint(self._parent.folder, with_optimizer=False)
        self._require_same_tokenizer(self._parent, parent)
        size = (self._description.vocabulary_size, self._description.end_token_id)
        return fit_architecture(parent.architecture, size, "dataset_uri", self._context.warn)

    def _require_same_tokenizer(self, artifact: Artifact, parent: Checkpoint) -> None:
        """Token ids must mean the same to the dataset and to the checkpoint."""
        size = parent.architecture.vocabulary_size
        advice = (
            "encode the corpus with the tokenizer of the checkpoint, or import the weights with that of the dataset in "
            "target_tokenizer_uri"
        )
        # A model that was imported without its tokenizer may have padding that looks like tokens.
        without_tokenizer = not (artifact.folder / TOKENIZER_FOLDER).is_dir()
        fits = without_tokenizer and padding_problem(size, self._description.vocabulary_size) is None
        if self._description.vocabulary_size != size and not fits:
            raise FailedPrecondition(
                f"the dataset has a vocabulary of {self._description.vocabulary_size} tokens and the checkpoint one of "
                f"{size}: {advice}"
            )
        folders = (self._tokenizer, artifact.folder / TOKENIZER_FOLDER)
        same_digest = parent.state.tokenizer_digest == self._description.tokenizer_digest
        if not same_digest and all(folder.is_dir() for folder in folders) and not same_tokenizer(*folders):
            raise FailedPrecondition(f"the dataset was encoded with another tokenizer than the checkpoint's: {advice}")

    def _data(self, config: ResolvedTrainingConfig) -> tuple[TrainingData, ValidationData]:
        streams = {split: TokenStream(self._dataset.folder, split) for split in SPLITS}
        expected = {TRAIN: self._description.train.tokens, VALIDATION: self._description.validation.tokens}
        for split, stream in streams.items():
            if len(stream) != expected[split]:
                raise DataLoss(
                    f"the {split} split of the dataset has {len(stream)} tokens instead of {expected[split]}: "
                    "encode the corpus again"
                )
        train = TrainingData(
            streams[TRAIN],
            config.context_length,
            config.batch_size,
            config.seed,
            config.noise,
            self._description.vocabulary_size,
            self._description.end_token_id if config.reshuffle_documents else None,
        )
        validation = ValidationData(
            streams[VALIDATION], config.context_length, config.validation_sequences, config.micro_batch_size
        )
        return train, validation

    def _first(self, architecture: Architecture, config: ResolvedTrainingConfig) -> Checkpoint:
        """The state of a training before its first update."""
        if self._before is not None and self._parent is not None:
            state = replace(
                self._before.state,
                config=config.to_json(),
                source=self._parent.digest,
                seconds=0.0,
                stopped_because="",
            )
            return replace(self._before, state=state)
        if self._parent is None:
            weights, source = initial_weights(architecture, config.seed), "new"
        else:
            weights = read_checkpoint(self._parent.folder, with_optimizer=False).weights
            weights = cut_vocabulary(weights, architecture)
            source = self._parent.digest
        state = TrainingState(
            seed=config.seed,
            config=config.to_json(),
            dataset_digest=self._dataset.digest,
            tokenizer_digest=self._description.tokenizer_digest,
            source=source,
        )
        adapters = initial_adapters(architecture, config.lora, config.seed) if config.lora else {}
        return Checkpoint(architecture=architecture, weights=weights, slots={}, state=state, adapters=adapters)

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
        codec = TextCodec(self._tokenizer, start.architecture.end_token_id)
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
        if not self._tokenizer.is_dir():
            return 0.0
        return validation.bytes_per_token(token_bytes(self._tokenizer, self._description.vocabulary_size))

    def _publish(
        self,
        config: ResolvedTrainingConfig,
        architecture: Architecture,
        state: TrainingState,
        checkpoints: CheckpointManager,
        parents: list[Artifact],
    ) -> Artifact:
        """Publishes the best checkpoint, and with it the last step, to continue from."""
        self._context.report("publishing")
        summary = summarize_training(state, config.first_step)
        if summary is None:
            raise FailedPrecondition(
                "the training diverged: its validation loss is NaN or Inf; start a new job with a lower "
                "learning_rate or a longer warm-up"
            )
        best = summary.best.step
        with self._context.create(CHECKPOINT, CHECKPOINT, parents) as writer:
            shutil.rmtree(writer.folder)
            writer.folder.mkdir()
            if best > config.first_step:
                checkpoints.verify(best)
                checkpoints.publish(best, writer.folder, is_averaged=bool(config.ema_decay))
            else:
                self._publish_start(writer.folder, architecture, config, summary.best)
            if best != state.step or config.lora is not None or config.ema_decay:
                checkpoints.verify(state.step)
                checkpoints.publish_resumable(state.step, writer.folder / LAST)
                # A training continues from its last step: the optimizer's state of the best one is not needed.
                (writer.folder / OPTIMIZER).unlink(missing_ok=True)
            for text in summary.warnings():
                self._context.warn(text)
            counts = {"parameters": count_parameters(architecture), "steps": best}
            return writer.commit(counts, _properties(architecture, state, summary) | environment())

    def _publish_start(
        self, target: Path, architecture: Architecture, config: ResolvedTrainingConfig, best: Validation
    ) -> None:
        """Publishes the weights that the training started with, as no step of it is better."""
        if self._before is not None and self._parent is not None:
            # The checkpoint that it continues is of its best step, and that is the best of all.
            for name in (CONFIG, WEIGHTS, STATE):
                shutil.copy2(self._parent.folder / name, target / name)
            for name in (ADAPTER, TOKENIZER_FOLDER):
                if (self._parent.folder / name).is_dir():
                    shutil.copytree(self._parent.folder / name, target / name)
            return
        start = self._first(architecture, config)
        start = replace(start, state=replace(start.state, validations=[best]))
        write_checkpoint(target, merged(start), self._tokenizer if self._tokenizer.is_dir() else None)


def _read_last(folder: Path) -> Checkpoint:
    """Reads the state after the last step of a checkpoint artifact.

    Raises:
        DataLoss: The files are damaged.
        InvalidRequest: It holds no optimizer's state.
    """
    last = folder / LAST
    checkpoint = read_checkpoint(last if last.is_dir() else folder, with_optimizer=True)
    if not checkpoint.slots:
        raise InvalidRequest([("continue_uri", NOTHING_TO_CONTINUE)])
    return checkpoint


def _properties(architecture: Architecture, state: TrainingState, summary: TrainingSummary) -> dict[str, str]:
    """Properties of the checkpoint's manifest."""
    result = TrainingResult(
        step=summary.best.step,
        last_step=state.step,
        stopped_because=state.stopped_because,
        skipped_steps=state.skipped_steps,
        validation_loss=summary.best.loss,
        last_validation_loss=summary.last.loss,
        initial_validation_loss=summary.initial.loss,
        validation_bits_per_byte=summary.best.bits_per_byte,
        regressed=summary.regressed,
        dataset_digest=state.dataset_digest,
        tokenizer_digest=state.tokenizer_digest,
        architecture=architecture.to_json(),
        warnings=tuple(summary.warnings()),
    )
    return result.to_properties()
