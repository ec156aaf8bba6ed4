"""ImportCheckpoint: takes OpenAI's or Hugging Face's weights as a checkpoint. Never makes up what is missing."""

import hashlib
import logging
import posixpath
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.artifacts.roots import filesystem_of, local_path
from gpt2_common.errors import DataLoss, InvalidRequest
from gpt2_common.hub import SCHEME, HubAddress
from gpt2_common.jobs.context import JobContext, output
from gpt2_common.vocabulary.files import commit_vocabulary, read_vocabulary
from gpt2_common.vocabulary.importing import TOKENIZER_FILES
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts import openai
from gpt2_contracts.artifact import CHECKPOINT, TOKENIZER
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES, PRESETS, Architecture
from gpt2_trainer.formats.checkpoint import (
    ADAPTER,
    STATE,
    WEIGHTS,
    Checkpoint,
    TrainingState,
    merged,
    read_checkpoint,
    write_checkpoint,
)
from gpt2_trainer.formats.openai_download import ModelDownload
from gpt2_trainer.formats.tokenizer_files import read_tokenizer
from gpt2_trainer.formats.transplant import map_tokens, transplant
from gpt2_trainer.formats.unsupported_formats import file_problem, pointer_problem, unsupported_format
from gpt2_trainer.formats.vocabulary_padding import fit_vocabulary
from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.weights import Weights, count_parameters
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.validation import import_problems

_log = logging.getLogger(__name__)

_HUGGINGFACE_CONFIG = "config.json"
_WANTED = frozenset(
    {
        openai.HPARAMS_FILE,
        openai.CHECKPOINT_FILE,
        _HUGGINGFACE_CONFIG,
        "model.safetensors",
        "model.safetensors.index.json",
    }
    | {WEIGHTS, STATE, f"{ADAPTER}/adapter_model.safetensors"}
    | TOKENIZER_FILES
    | {f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES}
)
_HUB_WHOLE, _HUB_INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_WEIGHTS = frozenset({_HUB_WHOLE, _HUB_INDEX})
_HUB_WANTED = TOKENIZER_FILES | {_HUGGINGFACE_CONFIG, "generation_config.json"}


def import_checkpoint(
    request: pb.ImportCheckpointRequest, context: JobContext[TrainerSettings]
) -> list[artifact_pb2.Artifact]:
    """Imports weights.

    Returns:
        The output `checkpoint`, and `tokenizer` where the source carries one and the checkpoint gets no other.

    Raises:
        PipelineError: The source is unreachable, incomplete or no GPT-2; the message names what is wrong.
    """
    if problems := import_problems(request, context.require_allowed):
        raise InvalidRequest(problems)
    # Before the source, which may be downloaded for long.
    target = _open_target(request.target_tokenizer_uri, context) if request.target_tokenizer_uri else None
    field = request.WhichOneof("source") or ""
    if field == "openai_model":
        download = _download(request.openai_model, context)
        folder, address = download.run(), download.address
    else:
        folder, address = _fetched(request.uri, context)
    context.report("reading")
    if problem := pointer_problem(path for path in folder.iterdir() if _is_wanted(path.name)):
        raise InvalidRequest([(field, problem)])
    vocabulary = read_tokenizer(folder / TOKENIZER_FOLDER if _is_ours(folder) else folder, field)
    tokenizer = target[0] if target else None
    if vocabulary is None and target is not None:
        raise InvalidRequest([(field, _without_tokenizer(address))])
    if vocabulary is None:
        context.warn(f"{field}: {address} has no tokenizer: name one in tokenizer_uri when you export the model")
    elif target is None:
        tokenizer = _publish_tokenizer(vocabulary, address, context)
    architecture, weights = _read(folder, vocabulary, field)
    rows, properties = architecture.vocabulary_size, {"source": address}
    if vocabulary is not None:
        size = (vocabulary.size, vocabulary.end_token_id)
        architecture, weights = fit_vocabulary(architecture, weights, size, field, context.warn)
        if rows != architecture.vocabulary_size:
            properties["padding_rows_removed"] = str(rows - architecture.vocabulary_size)
    if field == "openai_model" and architecture.layers != PRESETS[OFFICIAL_NAMES[request.openai_model]]:
        raise InvalidRequest([(field, f"what {address} holds is not of the sizes of {request.openai_model}")])
    context.check_cancelled()
    if vocabulary is not None and target is not None:
        context.report("transplanting")
        architecture, weights, counts = _transplanted(architecture, weights, vocabulary, target[1], context)
        properties |= counts
        context.check_cancelled()
    context.report("writing")
    state = TrainingState(source=address, tokenizer_digest=tokenizer.digest if tokenizer else "")
    checkpoint = Checkpoint(architecture=architecture, weights=weights, slots={}, state=state)
    with context.create(CHECKPOINT, CHECKPOINT, [tokenizer] if tokenizer else []) as writer:
        shutil.rmtree(writer.folder)
        writer.folder.mkdir()
        write_checkpoint(writer.folder, checkpoint, _files_of(tokenizer, context) if tokenizer else None)
        properties |= {name: str(value) for name, value in architecture.to_json().items()}
        properties["tokenizer_digest"] = state.tokenizer_digest
        committed = writer.commit({"parameters": count_parameters(architecture)}, properties)
    made = [] if tokenizer is None or target else [output(TOKENIZER, tokenizer)]
    return [output(CHECKPOINT, committed), *made]


def _open_target(uri: str, context: JobContext[TrainerSettings]) -> tuple[Artifact, Vocabulary]:
    """The tokenizer that the model gets. Raises PipelineError when the URI names none, or one that is damaged."""
    artifact = context.open("target_tokenizer_uri", uri, TOKENIZER, verify=True)
    return artifact, read_vocabulary(artifact)


def _without_tokenizer(address: str) -> str:
    return (
        f"{address} has no tokenizer, which says what its tokens stand for: put the tokenizer.json that the model was "
        "trained with (or vocab.json and merges.txt) beside the weights, or leave out target_tokenizer_uri"
    )


def _transplanted(
    architecture: Architecture,
    weights: Weights,
    source: Vocabulary,
    target: Vocabulary,
    context: JobContext[TrainerSettings],
) -> tuple[Architecture, Weights, dict[str, str]]:
    """The model with another tokenizer, and the checkpoint's properties that say how its tokens began."""
    tokens = map_tokens(source, target)
    if source.fingerprint == target.fingerprint:
        context.warn("target_tokenizer_uri: this is the source's own tokenizer, so all rows are copied: leave it out")
    _log.info(
        "transplanted from %d tokens to %d: %d copied, %d averaged",
        source.size,
        target.size,
        tokens.copied,
        tokens.averaged,
    )
    counts = {
        "copied_tokens": str(tokens.copied),
        "averaged_tokens": str(tokens.averaged),
        "source_tokenizer": source.fingerprint,
    }
    return *transplant(architecture, weights, tokens, target.end_token_id), counts


def _is_weights(name: str) -> bool:
    return name in (WEIGHTS, "model.safetensors", "model.safetensors.index.json") or name.startswith("model.ckpt.")


def _require_weights(names: Collection[str], uri: str) -> None:
    """Raises InvalidRequest when a source holds another kind of model alone."""
    if not any(_is_weights(name) for name in names) and (problem := unsupported_format(names)):
        raise InvalidRequest([("uri", f"{uri}: {problem}")])


def _is_wanted(name: str) -> bool:
    return name in _WANTED or _is_weights(name) or _is_shard(name)


def _is_shard(name: str) -> bool:
    return name.startswith("model-") and name.endswith(".safetensors")


def _is_ours(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (WEIGHTS, STATE))


def _download(name: str, context: JobContext[TrainerSettings]) -> ModelDownload:
    """The download of one of OpenAI's models."""
    settings = context.settings
    return ModelDownload(
        base_url=settings.openai_base_url,
        model=OFFICIAL_NAMES[name],
        cache=settings.openai_cache,
        timeout_seconds=settings.download_timeout_seconds,
        on_progress=partial(_report_download, context),
    )


def _web_download(address: str, context: JobContext[TrainerSettings]) -> ModelDownload:
    """The download of another model in OpenAI's format, of which no checksum is known beforehand."""
    base_url, _, model = address.rpartition("/")
    settings = context.settings
    return ModelDownload(
        base_url=base_url,
        model=model,
        cache=settings.openai_cache / "others" / hashlib.sha256(base_url.encode()).hexdigest()[:16],
        timeout_seconds=settings.download_timeout_seconds,
        on_progress=partial(_report_download, context),
        known_sha256={},
        known_sizes={},
        files=openai.NEEDED_FILES,
    )


def _fetched(uri: str, context: JobContext[TrainerSettings]) -> tuple[Path, str]:
    """The folder with a source's files, and its address, which names the commit of a hub's model."""
    if uri.startswith(SCHEME):
        model = HubAddress.parse(uri)
        context.require_allowed("uri", model.root)
        from gpt2_common.hub_download import HubDownload

        download = HubDownload(
            address=model,
            cache=context.settings.hub_cache,
            timeout_seconds=context.settings.download_timeout_seconds,
            choose=partial(_hub_files, model.root),
            on_progress=partial(_report_download, context),
        )
        folder, commit = download.run()
        return folder, f"{model.root}@{commit}"
    address = context.require_allowed("uri", uri)
    if address.startswith(("http://", "https://")):
        return _web_download(address, context).run(), address
    return _local_copy(address, context), address


def _hub_files(uri: str, names: Collection[str]) -> list[str]:
    """Those of a hub's model that are read. Raises InvalidRequest when it holds no weights that can be."""
    if not _HUB_WEIGHTS.intersection(names):
        problem = unsupported_format(names) or "it has no model.safetensors and no model.safetensors.index.json"
        raise InvalidRequest([("uri", f"{uri}: {problem}")])
    if _HUB_WHOLE in names:
        return [name for name in names if name == _HUB_WHOLE or name in _HUB_WANTED]
    return [name for name in names if name == _HUB_INDEX or name in _HUB_WANTED or _is_shard(name)]


def _report_download(context: JobContext[TrainerSettings], done: int, total: int) -> None:
    context.check_cancelled()
    context.report("downloading", done, total, "bytes")


def _local_copy(uri: str, context: JobContext[TrainerSettings]) -> Path:
    """The source's folder, or a copy of its files where it is remote."""
    folder = local_path(uri)
    if folder is not None:
        if folder.is_file():
            raise InvalidRequest([("uri", file_problem(folder))])
        if not folder.is_dir():
            raise InvalidRequest([("uri", f"{folder} is no folder")])
        _require_weights([path.name for path in folder.iterdir()], uri)
        return folder
    filesystem, root = filesystem_of(uri)
    paths = filesystem.find(root, maxdepth=2)
    if not paths:
        raise InvalidRequest([("uri", f"{uri} is no folder, or an empty one")])
    target = context.work / "source"
    target.mkdir(exist_ok=True)
    inside = posixpath.normpath(filesystem._strip_protocol(root))
    names = {path: posixpath.relpath(path, inside) for path in paths}
    _require_weights(names.values(), uri)
    for path, name in names.items():
        if _is_wanted(name):
            context.check_cancelled()
            context.report("copying")
            (target / name).parent.mkdir(exist_ok=True)
            filesystem.get_file(path, str(target / name))
    return target


def _publish_tokenizer(vocabulary: Vocabulary, address: str, context: JobContext[TrainerSettings]) -> Artifact:
    """Publishes the source's tokenizer."""
    with context.create(TOKENIZER, TOKENIZER) as writer:
        shutil.rmtree(writer.folder)
        writer.folder.mkdir()
        return commit_vocabulary(writer, vocabulary, address)


def _files_of(tokenizer: Artifact, context: JobContext[TrainerSettings]) -> Path:
    """A folder with a tokenizer's files, without its manifest."""
    target = context.work / "tokenizer-files"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for entry in tokenizer.manifest.files:
        shutil.copyfile(tokenizer.folder / entry.path, target / entry.path)
    return target


def _read(folder: Path, tokenizer: Vocabulary | None, field: str) -> tuple[Architecture, Weights]:
    if (folder / openai.HPARAMS_FILE).is_file():
        # Only TensorFlow reads its checkpoints.
        select_backend("tensorflow")
        from gpt2_trainer.formats.openai import read_openai

        return read_openai(folder, tokenizer.end_token_id if tokenizer else None, field)
    if _is_ours(folder):
        try:
            checkpoint = merged(read_checkpoint(folder, with_optimizer=False))
        except (DataLoss, KeyError, TypeError) as error:
            raise InvalidRequest([(field, f"{folder} is no whole checkpoint: {error}")]) from error
        return checkpoint.architecture, checkpoint.weights
    if (folder / _HUGGINGFACE_CONFIG).is_file():
        from gpt2_trainer.formats.huggingface import read_huggingface

        return read_huggingface(folder, field, tokenizer)
    wanted = f"neither {openai.HPARAMS_FILE} (OpenAI) nor {_HUGGINGFACE_CONFIG} (Hugging Face)"
    inner = next((path.parent for path in sorted(folder.glob(f"**/{_HUGGINGFACE_CONFIG}"))), None)
    advice = f": name its folder {inner.relative_to(folder)}, which has one" if inner else ""
    raise InvalidRequest([(field, f"{folder} has {wanted}{advice}")])
