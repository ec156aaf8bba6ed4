"""`gpt2 generate`: text from a model, as the trainer serves it, piece by piece."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_orchestration.client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json
from gpt2_orchestration.commands.references import REFERENCE_HELP, artifact_uri
from gpt2_orchestration.commands.texts import check_text, read_file, read_input

_KEPT_CONTROLS = "\n\t"


@shows_errors
def generate(
    model: Annotated[str, typer.Argument(help=f"URI of a model artifact, or {REFERENCE_HELP}")],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to go on from. Default: all that comes in as one, or ask for them in a terminal."),
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="File with a prompt on each line; `-` is standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each sample, at most.")] = 128,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Samples of each prompt.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0, help="Lower is more certain. Default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Draw among the k likeliest. 0: all. Default 40.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this chance. Default 1.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Over 1: tokens seen before become less likely. Default 1.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int, typer.Option(min=0, help="No sequence of so many tokens comes twice. 0: any may.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text. Default: random.")] = None,
    stop: Annotated[list[str], typer.Option(help="Text to stop at. Repeatable.")] = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Generate text. In a terminal without a prompt: prompt after prompt, until Ctrl-D."""
    if prompt and prompts_file:
        raise UsageError("--prompts-file: cannot be given with prompts; leave out either")
    for name, value, bits in (("--max-tokens", max_tokens, 31), ("--top-k", top_k or 0, 31), ("--seed", seed or 0, 63)):
        _check_bits(name, value, bits)
    _check_bits("--no-repeat-ngram-size", no_repeat_ngram_size, 31)
    is_conversation = not prompt and prompts_file is None and sys.stdin.isatty()
    # Before a service is looked for, as what is wrong with them is not its fault.
    prompts = [] if is_conversation else list(prompt or []) or _read_prompts(prompts_file)
    settings = client_settings()
    request = pb.GenerateRequest(
        model_uri=_model_uri(model, settings),
        max_tokens=max_tokens,
        samples=samples,
        sampling=pb.SamplingConfig(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
        ),
        seed=seed,
        stop=stop,
    )
    with connect("trainer", settings) as trainer:
        if is_conversation:
            _converse(trainer, request, json)
        elif len(prompts) == 1:
            request.prompt = prompts[0]
            _answer(trainer, request, json)
        else:
            request.prompts.extend(prompts)
            _answer_many(trainer, request, json)


def _check_bits(option: str, value: int, bits: int) -> None:
    """Raises UsageError where a whole number does not fit into the request."""
    if not -(2**bits) <= value < 2**bits:
        raise UsageError(f"{option}: must be from {-(2**bits):,} to {2**bits - 1:,}, not {value:,}")


def _read_prompts(path: Path | None) -> list[str]:
    """Lines of a file, or all of standard input as one prompt."""
    if path is None:
        # Programs end what they say with a line's end, which is no part of it.
        return [read_input().removesuffix("\n")]
    lines = read_file("--prompts-file", path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise UsageError(f"--prompts-file {path}: is empty; write a prompt on each line")
    return lines


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
        check_text("the prompt", line)
        yield line.rstrip("\n")


def _answer(trainer: ServiceClient, request: pb.GenerateRequest, json: bool) -> None:
    """Prints the samples of one prompt; a single one as it comes."""
    if request.samples == 1 and not json:
        for piece in trainer.stream("Generate", request):
            print(_shown(piece.text), end="", flush=True)
        print()
        return
    [written] = _collect(trainer, request, 1)
    if json:
        print_json({"model_uri": request.model_uri, "prompt": request.prompt, "samples": written})
        return
    for number, sample in enumerate(written, 1):
        print(f"--- sample {number} ---\n{_shown(sample['text'])}")


def _answer_many(trainer: ServiceClient, request: pb.GenerateRequest, json: bool) -> None:
    """Prints the samples of several prompts, in the order of the prompts."""
    written = _collect(trainer, request, len(request.prompts))
    if json:
        answers = [
            {"prompt": prompt, "samples": samples} for prompt, samples in zip(request.prompts, written, strict=True)
        ]
        print_json({"model_uri": request.model_uri, "prompts": answers})
        return
    for number, samples in enumerate(written, 1):
        for sample, content in enumerate(samples, 1):
            title = f"prompt {number}" if len(samples) == 1 else f"prompt {number}, sample {sample}"
            print(f"--- {title} ---\n{_shown(content['text'])}")


def _collect(trainer: ServiceClient, request: pb.GenerateRequest, prompts: int) -> Sequence[Sequence[dict[str, str]]]:
    """Text and reason of the end of each prompt's samples."""
    written = [[{"text": "", "finish_reason": ""} for _ in range(request.samples)] for _ in range(prompts)]
    for piece in trainer.stream("Generate", request):
        sample = written[piece.prompt][piece.sample]
        sample["text"] += piece.text
        if piece.finish_reason:
            name = pb.GenerateResponse.FinishReason.Name(piece.finish_reason)
            sample["finish_reason"] = name.removeprefix("FINISH_REASON_").lower()
    return written


def _shown(text: str) -> str:
    """The text without characters that a terminal would obey; as it is elsewhere."""
    if not sys.stdout.isatty():
        return text
    return "".join(character for character in text if character.isprintable() or character in _KEPT_CONTROLS)
