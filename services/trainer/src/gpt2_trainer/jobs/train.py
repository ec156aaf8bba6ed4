"""TrainModel: opens the data, finds where to begin or go on, trains, publishes the outputs."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest
from gpt2_common.jobs.context import JobContext, output
from gpt2_trainer.admission import input_problems
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.formats.checkpoint import (
    ADAPTER,
    CONFIG,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    WEIGHTS,
    Checkpoint,
    TrainingState,
    Validation,
    merged,
    read_checkpoint,
    write_checkpoint,
)
from gpt2_trainer.formats.padding import fit_architecture, padding_problem
from gpt2_trainer.formats.tokenizer_files import same_tokenizer
from gpt2_trainer.model.adapters import initial_adapters
from gpt2_trainer.model.backend import device_names, environment, select_backend
from gpt2_trainer.model.weights import count_parameters, cut_vocabulary, initial_weights
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.checkpoints import CheckpointFolder
from gpt2_trainer.training.continuing import LAST, continued_options, continuing_problems, read_last
from gpt2_trainer.training.data import DatasetDescription, TokenStream, TrainingData, ValidationData
from gpt2_trainer.training.outcome import Outcome, outcome_of
from gpt2_trainer.training.reports import TrainingLogs
from gpt2_trainer.training.speed import peak_flops
from gpt2_trainer.training_requests import as_table, device_problems, layer_sizes, train_problems, training_options


def train_model(request: pb.TrainModelRequest, context: JobContext[TrainerSettings]) -> list[artifact_pb2.Artifact]:
    """Trains a model.

    Returns:
        The outputs `checkpoint` (the best by validation loss, and in `last` what continues from the last step where
        that is another), `logs` and `samples`.

    Raises:
        PipelineError: The request does not fit its inputs, or the training diverged.
    """
    if problems := train_problems(request) + device_problems(request, context.settings.keras_backend):
        raise InvalidRequest(problems)
    return _Training(request, context).run()


class _Training:
    """One attempt of one training."""

    def __init__(self, request: pb.TrainModelRequest, context: JobContext[TrainerSettings]) -> None:
        self._request = request
        self._context = context
        context.report("opening")
        self._dataset = context.open("dataset_uri", request.dataset_uri, "dataset")
        self._description = DatasetDescription.read(self._dataset.folder)
        self._tokenizer = self._dataset.folder / TOKENIZER
        self._parent: Artifact | None = None
        start = request.WhichOneof("start")
        if start in ("checkpoint_uri", "continue_uri"):
            self._parent = context.open(start, getattr(request, start), "checkpoint")
        self._before = read_last(self._parent.folder) if self._parent and start == "continue_uri" else None

    def run(self) -> list[artifact_pb2.Artifact]:
        """Trains and publishes."""
        architecture = self._architecture()
        layers, memory_bytes = architecture.layers, self._context.settings.device_memory_bytes
        before = self._before.state if self._before else None
        if before and (problems := continuing_problems(self._request, before, self._dataset.digest)):
            raise InvalidRequest(problems)
        if problems := input_problems(self._request, architecture, self._description, memory_bytes, before):
            raise InvalidRequest(problems)
        train_tokens = self._description.train_tokens
        if before:
            options = continued_options(self._request, before, train_tokens)
        else:
            options = training_options(self._request, layers.n_ctx, train_tokens)
        train, validation = self._data(options)
        checkpoints = CheckpointFolder(
            self._context.work / "checkpoints",
            options.keep_checkpoints,
            self._tokenizer if self._tokenizer.is_dir() else None,
        )
        start = checkpoints.newest()
        if start is not None and start.state.dataset_digest != self._dataset.digest:
            raise FailedPrecondition(
                "the dataset was made anew since this training began: start a new job, so that it sees one dataset"
            )
        start = start or self._first(architecture, options)
        parents = [self._dataset, *([self._parent] if self._parent else [])]
        with (
            self._context.create_in_place("logs", "logs", parents) as logs_writer,
            self._context.create_in_place("samples", "samples", parents) as samples_writer,
        ):
            logs = TrainingLogs(logs_writer.folder, start.state.step)
            state = self._train(options, start, (train, validation), checkpoints, logs, samples_writer.folder)
            logs.close()
            published = self._publish(options, architecture, state, checkpoints, parents)
            samples_count = len(list(samples_writer.folder.glob("samples-*.txt")))
            return [
                output("checkpoint", published),
                output("logs", logs_writer.commit({"steps": state.step})),
                output("samples", samples_writer.commit({"files": samples_count})),
            ]

    def _architecture(self) -> Architecture:
        sizes = layer_sizes(self._request)
        if sizes is not None:
            return Architecture(
                layers=sizes,
                vocabulary_size=self._description.vocabulary_size,
                end_token_id=self._description.end_token_id,
            )
        if self._parent is None:
            raise AssertionError("train_problems lets no request without a start through")
        parent = read_checkpoint(self._parent.folder, with_optimizer=False)
        self._require_same_tokenizer(self._parent, parent)
        size = (self._description.vocabulary_size, self._description.end_token_id)
        return fit_architecture(parent.architecture, size, "dataset_uri", self._context.warn)

    def _require_same_tokenizer(self, artifact: Artifact, parent: Checkpoint) -> None:
        """Token ids must mean the same to the dataset and to the checkpoint."""
        size = parent.architecture.vocabulary_size
        advice = "encode the corpus with the tokenizer of the checkpoint"
        # A model that was imported without its tokenizer may have padding, which nothing told from tokens.
        without_tokenizer = not (artifact.folder / TOKENIZER).is_dir()
        fits = without_tokenizer and padding_problem(size, self._description.vocabulary_size) is None
        if self._description.vocabulary_size != size and not fits:
            raise FailedPrecondition(
                f"the dataset has a vocabulary of {self._description.vocabulary_size} tokens and the checkpoint one of "
                f"{size}: {advice}"
            )
        folders = (self._tokenizer, artifact.folder / TOKENIZER)
        same_digest = parent.state.tokenizer_digest == self._description.tokenizer_digest
        if not same_digest and all(folder.is_dir() for folder in folders) and not same_tokenizer(*folders):
            raise FailedPrecondition(f"the dataset was encoded with another tokenizer than the checkpoint's: {advice}")

    def _data(self, options: TrainingOptions) -> tuple[TrainingData, ValidationData]:
        streams = {split: TokenStream(self._dataset.folder, split) for split in ("train", "validation")}
        promised = {"train": self._description.train_tokens, "validation": self._description.validation_tokens}
        for split, stream in streams.items():
            if len(stream) != promised[split]:
                raise DataLoss(
                    f"the {split} split of the dataset has {len(stream)} tokens instead of {promised[split]}: "
                    "encode the corpus again"
                )
        train = TrainingData(
            streams["train"],
            options.context_length,
            options.batch_size,
            options.seed,
            options.noise,
            self._description.vocabulary_size,
        )
        validation = ValidationData(
            streams["validation"], options.context_length, options.validation_sequences, options.micro_batch_size
        )
        return train, validation

    def _first(self, architecture: Architecture, options: TrainingOptions) -> Checkpoint:
        """What a training that has not begun begins with."""
        if self._before is not None and self._parent is not None:
            state = replace(
                self._before.state,
                config=options.to_json(),
                source=self._parent.digest,
                seconds=0.0,
                stopped_because="",
            )
            return replace(self._before, state=state)
        if self._parent is None:
            weights, source = initial_weights(architecture, options.seed), "new"
        else:
            weights = read_checkpoint(self._parent.folder, with_optimizer=False).weights
            weights = cut_vocabulary(weights, architecture)
            source = self._parent.digest
        state = TrainingState(
            seed=options.seed,
            config=options.to_json(),
            dataset_digest=self._dataset.digest,
            tokenizer_digest=self._description.tokenizer_digest,
            source=source,
        )
        adapters = initial_adapters(architecture, options.lora, options.seed) if options.lora else {}
        return Checkpoint(architecture=architecture, weights=weights, slots={}, state=state, adapters=adapters)

    def _train(
        self,
        options: TrainingOptions,
        start: Checkpoint,
        data: tuple[TrainingData, ValidationData],
        checkpoints: CheckpointFolder,
        logs: TrainingLogs,
        samples_folder: Path,
    ) -> TrainingState:
        # Keras is imported only here, when the inputs are known to be right: it takes seconds.
        select_backend(self._context.settings.keras_backend)
        from gpt2_trainer.generation.text import TextCodec
        from gpt2_trainer.model.network import Network
        from gpt2_trainer.training.loop import TrainingLoop, TrainingSurroundings
        from gpt2_trainer.training.samples import SampleWriter

        logs.config(self._context.job_id, as_table(options))
        codec = TextCodec(self._tokenizer, start.architecture.end_token_id)
        network = Network(architecture=start.architecture)
        surroundings = TrainingSurroundings(
            train=data[0],
            validation=data[1],
            checkpoints=checkpoints,
            logs=logs,
            peak_flops=peak_flops(
                device_names()[: options.devices or None], options.precision, self._context.settings.device_peak_flops
            ),
            take_samples=SampleWriter(network, options, codec, samples_folder, logs).write,
            report=lambda phase, step, figures: self._report(phase, step, options.steps, figures),
            check_interrupted=self._context.check_cancelled,
        )
        self._context.report("compiling", start.state.step, options.steps, "steps")
        return TrainingLoop(options, start, surroundings).run()

    def _report(self, phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._context.report(phase, step, steps, "steps", finite)

    def _publish(
        self,
        options: TrainingOptions,
        architecture: Architecture,
        state: TrainingState,
        checkpoints: CheckpointFolder,
        parents: list[Artifact],
    ) -> Artifact:
        """Publishes the best checkpoint, and with it what is needed to continue from the last step."""
        self._context.report("publishing")
        outcome = outcome_of(state, options.first_step)
        if outcome is None:
            raise FailedPrecondition(
                "the training diverged: its validation loss is no finite number; start a new job with a lower "
                "learning_rate or a longer warm-up"
            )
        best = outcome.best.step
        with self._context.create("checkpoint", "checkpoint", parents) as writer:
            shutil.rmtree(writer.folder)
            writer.folder.mkdir()
            if best > options.first_step:
                checkpoints.verify(best)
                checkpoints.publish(best, writer.folder)
            else:
                self._publish_start(writer.folder, architecture, options, outcome.best)
            if best != state.step or options.lora is not None:
                checkpoints.verify(state.step)
                checkpoints.publish_unmerged(state.step, writer.folder / LAST)
                # Two optimizers' states would only take room: a training continues from its last step.
                (writer.folder / OPTIMIZER).unlink(missing_ok=True)
            for text in outcome.warnings():
                self._context.warn(text)
            counts = {"parameters": count_parameters(architecture), "steps": best}
            return writer.commit(counts, _properties(architecture, state, outcome) | environment())

    def _publish_start(
        self, target: Path, architecture: Architecture, options: TrainingOptions, best: Validation
    ) -> None:
        """Writes the best weights from before the training, as no step of it is better."""
        if self._before is not None and self._parent is not None:
            # What it continues has published its best step, and this is the best of all.
            for name in (CONFIG, WEIGHTS, STATE):
                shutil.copy2(self._parent.folder / name, target / name)
            for name in (ADAPTER, TOKENIZER):
                if (self._parent.folder / name).is_dir():
                    shutil.copytree(self._parent.folder / name, target / name)
            return
        start = self._first(architecture, options)
        start = replace(start, state=replace(start.state, validations=[best]))
        write_checkpoint(target, merged(start), self._tokenizer if self._tokenizer.is_dir() else None)


def _properties(architecture: Architecture, state: TrainingState, outcome: Outcome) -> dict[str, str]:
    """What the checkpoint's manifest says besides counts. The losses are in nats per token."""
    facts: dict[str, Any] = {
        "step": outcome.best.step,
        "last_step": state.step,
        "stopped_because": state.stopped_because,
        "skipped_steps": state.skipped_steps,
        "validation_loss": outcome.best.loss,
        "last_validation_loss": outcome.last.loss,
        "initial_validation_loss": outcome.initial.loss,
        "ended_worse": str(outcome.ended_worse).lower(),
        "dataset_digest": state.dataset_digest,
        "tokenizer_digest": state.tokenizer_digest,
        **architecture.to_json(),
    }
    if warnings := outcome.warnings():
        facts["warnings"] = "\n".join(warnings)
    return {name: str(value) for name, value in facts.items()}
