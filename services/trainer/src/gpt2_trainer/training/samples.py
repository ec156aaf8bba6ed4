"""Samples of a training: what the model writes after so many steps, as text files and in TensorBoard."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.generation.decoder import Decoder
from gpt2_trainer.generation.text import TextCodec
from gpt2_trainer.model.network import Network
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.reports import TrainingLogs


class SampleWriter:
    """Writes `samples-<step>.txt`.

    Args:
        network: The model.
        options: What to sample, and how.
        codec: The dataset's tokenizer.
        folder: Where the files go.
        logs: Where TensorBoard finds them.
    """

    def __init__(
        self, network: Network, options: TrainingOptions, codec: TextCodec, folder: Path, logs: TrainingLogs
    ) -> None:
        self._decoder = Decoder(replace(network, precision="float32", rematerialise=False))
        self._options = options
        self._codec = codec
        self._folder = folder
        self._logs = logs

    def write(self, step: int, weights: Tensors) -> None:
        """Takes a round of samples. Each ends at the end token or at `sample_length` tokens."""
        options = self._options
        prompt = self._codec.encode_prompt(options.sample_prompt)
        # The step is part of the seed, or every round would draw the same random numbers.
        seed = options.seed * 1_000_003 + step
        tokens = self._decoder.generate(weights, prompt, options.sample_num, options.sampling, seed)
        drawn = np.stack(list(islice(tokens, options.sample_length)), axis=1)
        texts = [options.sample_prompt + self._codec.decode(row.tolist()) for row in drawn]
        parts = [f"===== sample {number} =====\n{text}\n" for number, text in enumerate(texts, start=1)]
        (self._folder / f"samples-{step}.txt").write_text("".join(parts), encoding="utf-8")
        self._logs.samples(step, texts)
