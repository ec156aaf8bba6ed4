"""From requests to options: fills in defaults and finds everything wrong at once. Imports no framework."""

import re

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_common.hub import SCHEME, HubAddress
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES
from gpt2_trainer.configuration.sampling import SamplingOptions
from gpt2_trainer.configuration.training import Problems

MOST_TOKENS = 1_000_000
MOST_SAMPLES = 64
MOST_STOPS = 16
MAX_PROMPTS = 1024
MAX_ROWS = 64
"""Samples, of one or more prompts, that are generated side by side."""


def sampling_options(config: pb.SamplingConfig) -> SamplingOptions:
    """Sampling options with their defaults."""
    return SamplingOptions(
        temperature=config.temperature if config.HasField("temperature") else 1.0,
        top_k=config.top_k if config.HasField("top_k") else 40,
        top_p=config.top_p if config.HasField("top_p") else 1.0,
        repetition_penalty=config.repetition_penalty if config.HasField("repetition_penalty") else 1.0,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
    )


def import_problems(request: pb.ImportCheckpointRequest) -> Problems:
    """What is wrong with a request for an import, as far as it alone can tell."""
    source = request.WhichOneof("source")
    if source is None:
        return [("source", "is required: openai_model or uri")]
    if source == "openai_model":
        return size_problems("openai_model", request.openai_model)
    return required("uri", request.uri) + _hub_problems(request.uri)


def _hub_problems(uri: str) -> Problems:
    """Whether a hub's model is written as it is read: not as its id alone, or as the address of its page."""
    if uri.startswith(SCHEME):
        try:
            HubAddress.parse(uri)
        except InvalidRequest as error:
            return list(error.violations)
        return []
    found = re.fullmatch(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+)(/.*)?", uri)
    if found is None or (found[2] and not uri.startswith("http")):
        return []
    advice = f"write hf://{found[1]} for the model of the Hugging Face hub, or the absolute path of a folder"
    return [("uri", f"{uri!r} is no URI that is read: {advice}")]


def export_problems(request: pb.ExportModelRequest) -> Problems:
    """What is wrong with a request for an export, as far as it alone can tell."""
    return required("checkpoint_uri", request.checkpoint_uri)


def evaluation_problems(request: pb.EvaluateModelRequest) -> Problems:
    """What is wrong with a request for an evaluation, as far as it alone can tell."""
    source = request.WhichOneof("source")
    found = [("source", "is required: checkpoint_uri or model_uri")]
    if source is not None:
        found = required(source, getattr(request, source))
    if not request.dataset_uri and not request.last_words_uri:
        found.append(("dataset_uri", "is required, or last_words_uri"))
    names = ("context_length", "batch_size", "sequences")
    return found + [(name, "must not be under 0") for name in names if getattr(request, name) < 0]


def generate_problems(request: pb.GenerateRequest) -> Problems:
    """What is wrong with a request for text, as far as it alone can tell."""
    found = required("model_uri", request.model_uri)
    if not 0 <= request.max_tokens <= MOST_TOKENS:
        found.append(("max_tokens", f"must be from 1 to {MOST_TOKENS:,}"))
    if not 0 <= request.samples <= MOST_SAMPLES:
        found.append(("samples", f"must be from 1 to {MOST_SAMPLES}"))
    if request.prompts and request.prompt:
        found.append(("prompts", "cannot be given with prompt; send either"))
    if len(request.prompts) > MAX_PROMPTS:
        found.append(
            ("prompts", f"must be at most {MAX_PROMPTS:,} texts, not {len(request.prompts):,}; send several calls")
        )
    if len(request.stop) > MOST_STOPS:
        found.append(("stop", f"must be at most {MOST_STOPS} texts"))
    found += [(f"stop[{number}]", "must not be empty") for number, stop in enumerate(request.stop) if not stop]
    sampling = sampling_options(request.sampling)
    return found + [(f"sampling.{name}", description) for name, description in sampling.problems()]


def size_problems(field: str, name: str) -> Problems:
    """Whether a name is one of OpenAI's sizes."""
    if name in OFFICIAL_NAMES:
        return []
    return [(field, f"must be one of {', '.join(OFFICIAL_NAMES)}, not {name!r}")]


def required(field: str, value: str) -> Problems:
    """Whether a text is given."""
    return [] if value else [(field, "is required")]
