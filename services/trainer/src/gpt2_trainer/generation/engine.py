"""Generates text with one model artifact: loaded once, then used for task after task."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.formats.huggingface import read_huggingface
from gpt2_trainer.generation.decoder import Decoder
from gpt2_trainer.generation.messages import GenerationTask, Piece
from gpt2_trainer.generation.text import TextCodec, TextStream
from gpt2_trainer.model.network import Network

Reason = pb.GenerateResponse.FinishReason


class TextGenerator:
    """A model in memory.

    Args:
        folder: Folder of a model artifact.
        precision: Type that matrices are multiplied in.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        architecture, weights = read_huggingface(folder, "model_uri")
        self._end_token_id = architecture.end_token_id
        self._codec = TextCodec(folder, architecture.end_token_id)
        self._decoder = Decoder(Network(architecture=architecture, precision=precision))
        self._weights = self._decoder.load(weights)

    def generate(self, task: GenerationTask, is_cancelled: Callable[[], bool]) -> Iterator[Piece]:
        """Generates until all samples have ended, or the task is cancelled."""
        streams: dict[int, TextStream] = {number: TextStream(self._codec, task.stops) for number in range(task.samples)}
        prompt = self._codec.encode_prompt(task.prompt)
        drawn = self._decoder.generate(self._weights, prompt, task.samples, task.sampling, task.seed)
        for count, token_ids in enumerate(islice(drawn, task.max_tokens), start=1):
            if is_cancelled():
                return
            for number in list(streams):
                piece = self._piece(number, streams[number], int(token_ids[number]), count == task.max_tokens)
                if piece.finish_reason:
                    del streams[number]
                if piece.text or piece.finish_reason:
                    yield piece
            if not streams:
                return

    def _piece(self, number: int, stream: TextStream, token_id: int, is_last: bool) -> Piece:
        if token_id == self._end_token_id:
            return Piece(number, stream.rest(), Reason.FINISH_REASON_END_TOKEN)
        text = stream.add(token_id)
        if stream.stopped:
            return Piece(number, text, Reason.FINISH_REASON_STOP)
        if is_last:
            return Piece(number, text + stream.rest(), Reason.FINISH_REASON_LENGTH)
        return Piece(number, text, Reason.FINISH_REASON_UNSPECIFIED)
