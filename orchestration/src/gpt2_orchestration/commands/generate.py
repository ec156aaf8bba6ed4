"""`gpt2 generate`: text from a model, as the trainer serves it, piece by piece."""

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_orchestration.client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json
from gpt2_orchestration.commands.references import REFERENCE_HELP, artifact_uri

_KEPT_CONTROLS = "\n\t"


@shows_errors
def generate(
    model: Annotated[str, typer.Argument(help=f"URI of a model artifact, or {REFERENCE_HELP}")],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to go on from. Default: what comes in, or ask for it in a terminal.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each sample, at most.")] = 128,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Samples of each prompt.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0, help="Lower is more certain. Default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Draw among the k likeliest. 0: all. Default 40.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this chance. Default 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text. Default: random.")] = None,
    stop: Annotated[list[str], typer.Option(help="Text to stop at. Repeatable.")] = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Generate text. In a terminal without a prompt: prompt after prompt, until Ctrl-D."""
    settings = ClientSettings.from_environment(os.environ)
    request = pb.GenerateRequest(
        model_uri=_model_uri(model, settings),
        max_tokens=max_tokens,
        samples=samples,
        sampling=pb.SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p),
        seed=seed,
        stop=stop,
    )
    with connect("trainer", settings) as trainer:
        if prompt is None and sys.stdin.isatty():
            _converse(trainer, request, json)
        else:
            # Programs end what they say with a line's end, which is no part of it.
            request.prompt = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
            _answer(trainer, request, json)


def _model_uri(model: str, settings: ClientSettings) -> str:
    if not model:
        raise UsageError(f"MODEL is empty: write the URI of a model artifact, or {REFERENCE_HELP}")
    if "://" in model:
        return model
    with connect("registry", settings) as registry:
        return artifact_uri(registry, model)


def _converse(trainer: ServiceClient, request: pb.GenerateRequest, json: bool) -> None:
    """Asks for prompts until the end of the input; Ctrl-C ends the text that is being written, or the whole."""
    for prompt in _prompts():
        request.prompt = prompt
        try:
            _answer(trainer, request, json)
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _prompts() -> Iterator[str]:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        yield line.rstrip("\n")


def _answer(trainer: ServiceClient, request: pb.GenerateRequest, json: bool) -> None:
    pieces = trainer.stream("Generate", request)
    if request.samples == 1 and not json:
        for piece in pieces:
            print(_shown(piece.text), end="", flush=True)
        print()
        return
    texts = [""] * request.samples
    reasons = [""] * request.samples
    for piece in pieces:
        texts[piece.sample] += piece.text
        if piece.finish_reason:
            name = pb.GenerateResponse.FinishReason.Name(piece.finish_reason)
            reasons[piece.sample] = name.removeprefix("FINISH_REASON_").lower()
    if json:
        written = [{"text": text, "finish_reason": reason} for text, reason in zip(texts, reasons, strict=True)]
        print_json({"model_uri": request.model_uri, "prompt": request.prompt, "samples": written})
        return
    for number, text in enumerate(texts, 1):
        print(f"--- sample {number} ---\n{_shown(text)}")


def _shown(text: str) -> str:
    """The text without characters that a terminal would obey; as it is elsewhere."""
    if not sys.stdout.isatty():
        return text
    return "".join(character for character in text if character.isprintable() or character in _KEPT_CONTROLS)
