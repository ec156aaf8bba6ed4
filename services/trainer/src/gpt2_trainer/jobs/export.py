"""ExportModel: makes a servable model of a checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_common.jobs.context import JobContext, output
from gpt2_contracts.artifact import CHECKPOINT, MODEL, TOKENIZER
from gpt2_contracts.model import SAVED_MODEL, ModelDescription
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_contracts.training import TrainingResult
from gpt2_trainer.formats.checkpoint import Checkpoint, read_checkpoint
from gpt2_trainer.formats.huggingface import write_huggingface
from gpt2_trainer.formats.tokenizer_files import check_tokenizer, tokenizer_size
from gpt2_trainer.formats.vocabulary_padding import fit_vocabulary
from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.weights import count_parameters
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.validation import export_problems

_SAMPLES = 3
_SAMPLE_TOKENS = 64


def export_model(request: pb.ExportModelRequest, context: JobContext[TrainerSettings]) -> list[artifact_pb2.Artifact]:
    """Exports a checkpoint.

    Returns:
        The output `model`: Hugging Face's layout, `saved_model/`, and `model.json` with its provenance.

    Raises:
        PipelineError: The checkpoint is damaged, or no tokenizer goes with it.
    """
    if problems := export_problems(request, context.require_allowed):
        raise InvalidRequest(problems)
    context.report("reading", 0, 3, "parts")
    artifact = context.open("checkpoint_uri", request.checkpoint_uri, CHECKPOINT, verify=True)
    checkpoint = read_checkpoint(artifact.folder, with_optimizer=False)
    tokenizer, parents = _tokenizer(request, context, artifact)
    field = "tokenizer_uri" if request.tokenizer_uri else "checkpoint_uri"
    if not (artifact.folder / TOKENIZER_FOLDER).is_dir():
        checkpoint = _fitted(checkpoint, tokenizer, field, context.warn)
    check_tokenizer(tokenizer, checkpoint.architecture, field)
    with context.create(MODEL, MODEL, parents) as writer:
        shutil.rmtree(writer.folder)
        writer.folder.mkdir()
        context.report("writing weights", 1, 3, "parts")
        write_huggingface(writer.folder, checkpoint.architecture, checkpoint.weights, tokenizer)
        context.check_cancelled()
        context.report("writing the SavedModel", 2, 3, "parts")
        samples = _write_saved_model(writer.folder, checkpoint)
        context.check_cancelled()
        context.report("committing", 3, 3, "parts")
        return [output(MODEL, _commit(writer, artifact, checkpoint, samples))]


def _tokenizer(
    request: pb.ExportModelRequest, context: JobContext[TrainerSettings], checkpoint: Artifact
) -> tuple[Path, list[Artifact]]:
    """Folder of the tokenizer's files, and what the model is made from."""
    if request.tokenizer_uri:
        artifact = context.open("tokenizer_uri", request.tokenizer_uri, TOKENIZER, verify=True)
        return artifact.folder, [checkpoint, artifact]
    folder = checkpoint.folder / TOKENIZER_FOLDER
    if not folder.is_dir():
        raise FailedPrecondition("checkpoint_uri: the checkpoint carries no tokenizer: name one in tokenizer_uri")
    return folder, [checkpoint]


def _fitted(checkpoint: Checkpoint, tokenizer: Path, field: str, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of a model that was imported without its tokenizer, its vocabulary without padding."""
    tokens, end = tokenizer_size(tokenizer, field)
    end = checkpoint.architecture.end_token_id if end is None else end
    architecture, weights = fit_vocabulary(checkpoint.architecture, checkpoint.weights, (tokens, end), field, warn)
    return replace(checkpoint, architecture=architecture, weights=weights)


def _write_saved_model(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Writes it and returns texts that it generates."""
    # A SavedModel is TensorFlow's, whatever the model was trained with.
    select_backend("tensorflow")
    from gpt2_trainer.formats.saved_model import ServedModel, write_saved_model
    from gpt2_trainer.generation.text import TextCodec

    model = ServedModel(checkpoint.architecture, checkpoint.weights)
    write_saved_model(folder / SAVED_MODEL, model)
    end = checkpoint.architecture.end_token_id
    tokens = min(_SAMPLE_TOKENS, checkpoint.architecture.layers.n_ctx)
    prompts, numbers = [[end]] * _SAMPLES, list(range(_SAMPLES))
    made = model.generate_samples(prompts, tokens, 1.0, 40, 1.0, 0, numbers, 1.0, 0)["token_ids"].numpy()
    codec = TextCodec(folder, end)
    return [codec.decode(row.tolist()) for row in made]


def _commit(writer: ArtifactWriter, artifact: Artifact, checkpoint: Checkpoint, samples: list[str]) -> Artifact:
    state, best = checkpoint.state, checkpoint.state.best
    trained = TrainingResult.from_properties(artifact.manifest.properties)
    description = ModelDescription(
        step=state.step,
        validation_loss=best.loss if best else None,
        initial_validation_loss=trained.initial_validation_loss,
        validation_bits_per_byte=best.bits_per_byte if best else None,
        last_step=trained.last_step,
        last_validation_loss=trained.last_validation_loss,
        regressed=trained.regressed,
        warnings="\n".join(trained.warnings) or None,
        checkpoint_digest=artifact.digest,
        dataset_digest=state.dataset_digest or None,
        tokenizer_digest=state.tokenizer_digest or None,
        source=state.source,
        architecture=checkpoint.architecture.to_json(),
        parameters=count_parameters(checkpoint.architecture),
        validations=tuple((item.step, item.loss) for item in state.validations),
        train_config=state.config,
        samples=tuple(samples),
    )
    (writer.folder / description.FILE).write_text(description.to_text(), encoding="utf-8")
    return writer.commit(description.to_counts(), description.to_properties())
