"""Generates text with one model artifact, loaded once for many tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.generation.decoder import Decoder
from gpt2_trainer.generation.text import TextCodec, TextStream
from gpt2_trainer.generation.worker_messages import GenerationTask, Piece
from gpt2_trainer.model.weights import Weights

Reason = pb.GenerateResponse.FinishReason

_MAX_ROWS = 64
"""Sequences that run side by side, unless one prompt alone has more samples."""


class TextGenerator:
    """A model and its tokenizer, loaded.

    Args:
        folder: Folder of a model artifact, with its tokenizer.
        architecture: Sizes of the model.
        weights: Its weights.
        compute_dtype: Dtype of matrix products, `float32` or `bfloat16`.
    """

    def __init__(self, folder: Path, architecture: Architecture, weights: Weights, compute_dtype: str) -> None:
        self._end_token_id = architecture.end_token_id
        self._codec = TextCodec(folder, architecture.end_token_id)
        self._decoder = Decoder(architecture, compute_dtype)
        self._weights = self._decoder.load(weights)

    def generate(self, task: GenerationTask, is_cancelled: Callable[[], bool]) -> Iterator[Piece]:
        """Generates until all samples of all prompts have ended, or the task is cancelled."""
        prompts = [self._codec.encode_prompt(prompt) for prompt in task.prompts]
        max_prompts = 1 << max(1, _MAX_ROWS // task.samples).bit_length() - 1
        for numbers in _batches(prompts, max_prompts):
            yield from self._generate_batch(task, {number: prompts[number] for number in numbers}, is_cancelled)
            if is_cancelled():
                return

    def _generate_batch(
        self, task: GenerationTask, prompts: Mapping[int, Sequence[int]], is_cancelled: Callable[[], bool]
    ) -> Iterator[Piece]:
        """Generates from prompts of one length, by their numbers."""
        places = {number: place for place, number in enumerate(prompts)}
        streams = {
            (number, sample): TextStream(self._codec, task.stops)
            for number in prompts
            for sample in range(task.samples)
        }
        rows = list(prompts.values())
        # Repeated to a power of two, as each number of rows is compiled by itself.
        rows += rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
        drawn = self._decoder.generate_batch(self._weights, rows, task.samples, task.sampling, task.seed)
        for count, token_ids in enumerate(islice(drawn, task.max_tokens), start=1):
            if is_cancelled():
                return
            for (number, sample), stream in list(streams.items()):
                token_id = int(token_ids[places[number], sample])
                text, reason = self._text(stream, token_id, count == task.max_tokens)
                if reason:
                    del streams[number, sample]
                if text or reason:
                    yield Piece(number, sample, text, reason)
            if not streams:
                return

    def _text(self, stream: TextStream, token_id: int, is_last: bool) -> tuple[str, int]:
        """Text that a token adds to a sample, and why the sample ends with it, if it does."""
        if token_id == self._end_token_id:
            return stream.rest(), Reason.FINISH_REASON_END_TOKEN
        text = stream.add(token_id)
        if stream.stopped:
            return text, Reason.FINISH_REASON_STOP
        if is_last:
            return text + stream.rest(), Reason.FINISH_REASON_LENGTH
        return text, Reason.FINISH_REASON_UNSPECIFIED


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Numbers of prompts that run together: at most `size` with as many tokens each, the earliest first."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]
