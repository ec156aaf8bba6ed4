"""EvaluateModel: measures a checkpoint or a model on a dataset's validation split and on LAMBADA."""

import hashlib
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound
from gpt2_common.jobs.context import JobContext, output
from gpt2_contracts.artifact import DATASET, EVALUATION
from gpt2_contracts.dataset import VALIDATION, DatasetDescription
from gpt2_contracts.evaluation import METRICS_FILE, ON_DATASET, ON_LAMBADA, EvaluationReport, Measurement
from gpt2_contracts.tokenizer import TOKENIZER_FILE, TOKENIZER_FOLDER
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.evaluation.lambada import LastWord, read_lambada
from gpt2_trainer.evaluation.sequences import EvaluationSequences
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.huggingface import read_huggingface
from gpt2_trainer.formats.json_files import write_json
from gpt2_trainer.formats.tokenizer_files import same_tokenizer, token_bytes
from gpt2_trainer.formats.vocabulary_padding import fit_vocabulary
from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.weights import Weights
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.data import TokenStream, too_short
from gpt2_trainer.validation import evaluation_problems

_BATCH_SIZE = 8


def evaluate_model(
    request: pb.EvaluateModelRequest, context: JobContext[TrainerSettings]
) -> list[artifact_pb2.Artifact]:
    """Evaluates a model.

    Returns:
        The output `evaluation`: `metrics.json`, whose metrics are the manifest's properties too, and `evaluation.json`,
        with the data and settings of each measurement.

    Raises:
        PipelineError: An input is damaged, or the inputs do not go together.
    """
    if problems := evaluation_problems(request, context.require_allowed):
        raise InvalidRequest(problems)
    return _Evaluation(request, context).run()


class _Evaluation:
    """One attempt of one evaluation."""

    def __init__(self, request: pb.EvaluateModelRequest, context: JobContext[TrainerSettings]) -> None:
        self._request = request
        self._context = context
        self._batch_size = request.batch_size or _BATCH_SIZE
        context.report("opening")
        self._field = request.WhichOneof("source") or ""
        uri = getattr(request, self._field)
        self._source = context.open(self._field, uri, self._field.removesuffix("_uri"), verify=True)
        self._words_digest = ""
        self._dataset: Artifact | None = None
        if request.dataset_uri:
            self._dataset = context.open("dataset_uri", request.dataset_uri, DATASET)

    def run(self) -> list[artifact_pb2.Artifact]:
        """Measures and publishes."""
        architecture, weights = self._model()
        validation = self._validation(architecture) if self._dataset is not None else None
        words = self._words(architecture) if self._request.lambada_uri else []
        measurements = self._measure(architecture, weights, validation, words)
        report = EvaluationReport(measurements=measurements)
        parents = [self._source, *([self._dataset] if self._dataset else [])]
        with self._context.create(EVALUATION, EVALUATION, parents) as writer:
            write_json(writer.folder / METRICS_FILE, report.metrics())
            (writer.folder / report.FILE).write_text(report.to_text(), encoding="utf-8")
            return [output(EVALUATION, writer.commit(report.to_counts(), report.to_properties()))]

    def _model(self) -> tuple[Architecture, Weights]:
        if self._field == "model_uri":
            return read_huggingface(self._source.folder, self._field)
        checkpoint = read_checkpoint(self._source.folder, with_optimizer=False)
        architecture, weights = checkpoint.architecture, checkpoint.weights
        if self._dataset is None or self._tokenizer.is_dir():
            return architecture, weights
        data = self._dataset.read(DatasetDescription)
        size = (data.vocabulary_size, data.end_token_id)
        return fit_vocabulary(architecture, weights, size, "dataset_uri", self._context.warn)

    @property
    def _tokenizer(self) -> Path:
        return self._source.folder if self._field == "model_uri" else self._source.folder / TOKENIZER_FOLDER

    def _validation(self, architecture: Architecture) -> EvaluationSequences:
        if self._dataset is None:
            raise AssertionError("called with a dataset only")
        folder = self._dataset.folder
        description = self._dataset.read(DatasetDescription)
        encoded_with = folder / TOKENIZER_FOLDER
        same_size = description.vocabulary_size == architecture.vocabulary_size
        comparable = encoded_with.is_dir() and self._tokenizer.is_dir()
        if not same_size or (comparable and not same_tokenizer(encoded_with, self._tokenizer)):
            raise FailedPrecondition(
                "dataset_uri: the dataset was encoded with another tokenizer than the model's: "
                "encode the corpus with the model's"
            )
        length = self._request.context_length or architecture.layers.n_ctx
        if length > architecture.layers.n_ctx:
            text = f"must be at most {architecture.layers.n_ctx}, the positions that the model has"
            raise InvalidRequest([("context_length", text)])
        stream = TokenStream(folder, VALIDATION)
        if problems := too_short(len(stream), length, VALIDATION):
            raise InvalidRequest([("context_length", text) for _, text in problems])
        sequences = self._request.sequences or None
        return EvaluationSequences(stream, description.end_token_id, length, sequences, self._batch_size)

    def _token_bytes(self, architecture: Architecture) -> NDArray[np.int64] | None:
        """Bytes of text of each token; None where neither dataset nor model carries the tokenizer."""
        if self._dataset is None:
            raise AssertionError("called with a dataset only")
        folders = (self._dataset.folder / TOKENIZER_FOLDER, self._tokenizer)
        found = next((folder for folder in folders if (folder / TOKENIZER_FILE).is_file()), None)
        return None if found is None else token_bytes(found, architecture.vocabulary_size)

    def _words(self, architecture: Architecture) -> list[LastWord]:
        field = "lambada_uri"
        if not self._tokenizer.is_dir():
            raise FailedPrecondition(f"{self._field}: the checkpoint carries no tokenizer, which {field} needs")
        from gpt2_trainer.generation.text import TextCodec  # loads the tokenizers library

        codec = TextCodec(self._tokenizer, architecture.end_token_id)
        uri = self._context.require_allowed(field, self._request.lambada_uri)
        filesystem, path = filesystem_of(uri)
        try:
            with filesystem.open(path, "rb") as file:
                self._words_digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
                return read_lambada(text, codec.encode_prompt, architecture.layers.n_ctx, field)
        except FileNotFoundError as error:
            raise NotFound(f"{field}: {uri} does not exist") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest([(field, f"the file is not UTF-8: {error}")]) from error
        except OSError as error:
            raise DataLoss(f"{field}: {uri} cannot be read: {error}") from error

    def _measure(
        self,
        architecture: Architecture,
        weights: Weights,
        validation: EvaluationSequences | None,
        words: list[LastWord],
    ) -> list[tuple[Measurement, Mapping[str, float]]]:
        """The metrics of each measurement."""
        self._context.report("compiling")
        # Keras is imported only here, when the inputs are known to be right: it takes seconds.
        select_backend(self._context.settings.evaluation_backend)
        from gpt2_trainer.evaluation.evaluator import Evaluator

        before = validation.sequences if validation else 0
        evaluator = Evaluator(architecture, weights, self._batch_size)
        report = partial(self._progress, before + len(words))
        measured: list[tuple[Measurement, Mapping[str, float]]] = []
        if validation is not None and self._dataset is not None:
            on_dataset = Measurement(
                kind=ON_DATASET,
                uri=self._dataset.uri,
                digest=self._dataset.digest,
                context_length=self._request.context_length or architecture.layers.n_ctx,
                sequences=validation.sequences,
            )
            text = self._token_bytes(architecture)
            measured.append((on_dataset, evaluator.perplexity(validation.batches(), text, partial(report, 0))))
        if words:
            on_lambada = Measurement(kind=ON_LAMBADA, uri=self._request.lambada_uri, digest=self._words_digest)
            measured.append((on_lambada, evaluator.lambada(words, partial(report, before))))
        return measured

    def _progress(self, total: int, before: int, done: int) -> None:
        self._context.check_cancelled()
        self._context.report("evaluating", before + done, total, "sequences")
