"""Samples of a training: texts that the model generates after some steps, as files and in TensorBoard."""

from itertools import islice
from pathlib import Path

import numpy as np

from gpt2_contracts.training import samples_name
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.generation.decoder import Decoder
from gpt2_trainer.generation.text import TextCodec
from gpt2_trainer.training.callback import Callback
from gpt2_trainer.training.loop import TrainingLoop
from gpt2_trainer.training.metrics_log import MetricsLog


class SampleWriter(Callback):
    """Writes a round of samples after the last step and, with `sample_every`, before the first and in between.

    Args:
        architecture: Sizes of the model.
        config: The training's configuration.
        codec: The dataset's tokenizer.
        folder: Where the files go; None: another node writes them.
        logs: Where TensorBoard finds them.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        codec: TextCodec,
        folder: Path | None,
        logs: MetricsLog,
    ) -> None:
        self._decoder = Decoder(architecture)
        self._config = config
        self._codec = codec
        self._folder = folder
        self._logs = logs

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """Writes the samples that later ones are compared with; see Callback."""
        if loop.state.step == 0 and self._config.sample_every is not None:
            self._write(loop)

    def on_step_end(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if loop.is_due(self._config.sample_every):
            self._write(loop)

    def _write(self, loop: TrainingLoop) -> None:
        """Writes one round of samples. Each ends at the end token or at `sample_length` tokens."""
        with loop.outside_updates():
            loop.report("sampling")
            config, step = self._config, loop.state.step
            prompt = self._codec.encode_prompt(config.sample_prompt)
            # The step is part of the seed, or every round would draw the same random numbers.
            seed = config.seed * 1_000_003 + step
            weights = loop.weights()
            if self._folder is None:
                return
            tokens = self._decoder.generate(weights, prompt, config.sample_num, config.sampling, seed)
            drawn = np.stack(list(islice(tokens, config.sample_length)), axis=1)
            texts = [config.sample_prompt + self._codec.decode(row.tolist()) for row in drawn]
            parts = [f"===== sample {number} =====\n{text}\n" for number, text in enumerate(texts, start=1)]
            (self._folder / samples_name(step)).write_text("".join(parts), encoding="utf-8")
            self._logs.log_samples(step, texts)
