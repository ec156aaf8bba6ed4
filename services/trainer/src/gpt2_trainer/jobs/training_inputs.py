"""What a TrainModel job reads: its dataset, the checkpoint that it starts from, the configuration that they decide."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.durable import write_durable
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest
from gpt2_common.jobs.context import JobContext
from gpt2_contracts.artifact import CHECKPOINT, DATASET
from gpt2_contracts.dataset import SPLITS, TRAIN, VALIDATION, DatasetDescription
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_trainer.admission import NOTHING_TO_CONTINUE, admit_training, new_architecture, require_continuable
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.resolution import new_layer_sizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import LAST, Checkpoint, TrainingState, read_checkpoint
from gpt2_trainer.formats.json_files import read_json
from gpt2_trainer.formats.tokenizer_files import same_tokenizer
from gpt2_trainer.formats.vocabulary_padding import fit_architecture, padding_problem
from gpt2_trainer.model.lora import initial_adapters
from gpt2_trainer.model.weights import cut_vocabulary, initial_weights
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.data import TokenStream, TrainingData, ValidationData

RESOLVED_CONFIG = "config.json"
"""The resolved configuration, in the job's work folder."""


class TrainingInputs:
    """The opened inputs of one training.

    Args:
        request: What to train.
        context: The job's context.

    Raises:
        DataLoss: An input is damaged.
        InvalidRequest: The checkpoint to continue holds no optimizer's state.
        PipelineError: An input does not exist.
    """

    def __init__(self, request: pb.TrainModelRequest, context: JobContext[TrainerSettings]) -> None:
        self._request = request
        self._context = context
        self.dataset = context.open("dataset_uri", request.dataset_uri, DATASET)
        self.description = self.dataset.read(DatasetDescription)
        self.tokenizer_folder = self.dataset.folder / TOKENIZER_FOLDER
        self.parent: Artifact | None = None
        """The checkpoint that the training starts from; None: from new weights."""
        start = request.WhichOneof("start")
        if start in ("checkpoint_uri", "continue_uri"):
            self.parent = context.open(start, getattr(request, start), CHECKPOINT)
        self.continued = _read_last(self.parent.folder) if self.parent and start == "continue_uri" else None
        """The end of the training that this one continues; None: it continues none."""

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the dataset's tokenizer; None where it carries none."""
        return self.tokenizer_folder if self.tokenizer_folder.is_dir() else None

    @property
    def artifacts(self) -> list[Artifact]:
        """What the outputs are made from."""
        return [self.dataset, *([self.parent] if self.parent else [])]

    @property
    def continued_backend(self) -> str:
        """Backend of the finished training that this one continues; empty where there is none."""
        return self.parent.manifest.properties.get("backend", "") if self.parent and self.continued else ""

    @property
    def identity(self) -> Mapping[str, str]:
        """What identifies the training: digests of its request and dataset."""
        return {"request_digest": self._context.identity.request_digest, "dataset_digest": self.dataset.digest}

    def architecture(self) -> Architecture:
        """Sizes of the model. Raises FailedPrecondition where the dataset and the checkpoint do not fit."""
        sizes = new_layer_sizes(self._request)
        if sizes is not None:
            return new_architecture(sizes, self.description)
        if self.parent is None:
            raise AssertionError("train_problems refuses a request without a start")
        parent = read_checkpoint(self.parent.folder, with_optimizer=False)
        self._require_same_tokenizer(self.parent, parent)
        size = (self.description.vocabulary_size, self.description.end_token_id)
        return fit_architecture(parent.architecture, size, "dataset_uri", self._context.warn)

    def config(self, architecture: Architecture, *, is_first: bool) -> ResolvedTrainingConfig:
        """The training's configuration, which its first attempt resolves and stores for all later ones.

        An upgrade between two attempts that changes a default so changes no training. The service cannot store it with
        the job: a job may be created before its dataset and checkpoint exist, whose sizes decide. The work folder is
        the same for every attempt, in a child process and in a TrainJob's pod. Of several nodes the first one stores
        it; until then the others resolve the same.

        Args:
            architecture: Sizes of the model.
            is_first: Whether this node stores it.

        Raises:
            DataLoss: What was stored is damaged.
            PipelineError: The configuration does not fit the inputs.
        """
        file = self._context.work / RESOLVED_CONFIG
        try:
            stored = read_json(file)
            if self.identity.items() <= stored.items():
                return ResolvedTrainingConfig.from_json(stored["config"])
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"{file} is damaged ({error}): start the training again under another job id") from error
        before = self.continued.state if self.continued else None
        if before:
            require_continuable(self._request, before, self.dataset.digest)
        config = admit_training(self._request, architecture, self.description, before)
        if is_first:
            write_durable(file, json.dumps({**self.identity, "config": config.to_json()}, indent=2))
        return config

    def data(self, config: ResolvedTrainingConfig) -> tuple[TrainingData, ValidationData]:
        """The data of both splits. Raises DataLoss."""
        streams = {split: TokenStream(self.dataset.folder, split) for split in SPLITS}
        expected = {TRAIN: self.description.train.tokens, VALIDATION: self.description.validation.tokens}
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
            self.description.vocabulary_size,
            self.description.end_token_id if config.reshuffle_documents else None,
        )
        validation = ValidationData(
            streams[VALIDATION], config.context_length, config.validation_sequences, config.micro_batch_size
        )
        return train, validation

    def initial_checkpoint(self, architecture: Architecture, config: ResolvedTrainingConfig) -> Checkpoint:
        """The state of a training before its first update."""
        if self.continued is not None and self.parent is not None:
            state = replace(
                self.continued.state,
                config=config.to_json(),
                source=self.parent.digest,
                seconds=0.0,
                stopped_because="",
            )
            return replace(self.continued, state=state)
        if self.parent is None:
            weights, source = initial_weights(architecture, config.seed), "new"
        else:
            weights = read_checkpoint(self.parent.folder, with_optimizer=False).weights
            weights = cut_vocabulary(weights, architecture)
            source = self.parent.digest
        state = TrainingState(
            seed=config.seed,
            config=config.to_json(),
            dataset_digest=self.dataset.digest,
            tokenizer_digest=self.description.tokenizer_digest,
            source=source,
        )
        adapters = initial_adapters(architecture, config.lora, config.seed) if config.lora else {}
        return Checkpoint(architecture=architecture, weights=weights, slots={}, state=state, adapters=adapters)

    def _require_same_tokenizer(self, artifact: Artifact, parent: Checkpoint) -> None:
        """Token ids must mean the same to the dataset and to the checkpoint."""
        size = parent.architecture.vocabulary_size
        advice = (
            "encode the corpus with the tokenizer of the checkpoint, or import the weights with that of the dataset in "
            "target_tokenizer_uri"
        )
        # A model that was imported without its tokenizer may have padding that looks like tokens.
        without_tokenizer = not (artifact.folder / TOKENIZER_FOLDER).is_dir()
        fits = without_tokenizer and padding_problem(size, self.description.vocabulary_size) is None
        if self.description.vocabulary_size != size and not fits:
            raise FailedPrecondition(
                f"the dataset has a vocabulary of {self.description.vocabulary_size} tokens and the checkpoint one of "
                f"{size}: {advice}"
            )
        of_checkpoint = artifact.folder / TOKENIZER_FOLDER
        if parent.state.tokenizer_digest == self.description.tokenizer_digest or self.tokenizer is None:
            return
        if of_checkpoint.is_dir() and not same_tokenizer(self.tokenizer, of_checkpoint):
            raise FailedPrecondition(f"the dataset was encoded with another tokenizer than the checkpoint's: {advice}")


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
