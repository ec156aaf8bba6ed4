"""KerasHub's GPT2CausalLM, its own compiled generation."""

import os
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras_hub
import numpy as np
from contender import Work, serve


def build(setting: dict) -> Work:
    """Makes a generation from a random prompt."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=setting["vocabulary"],
        num_layers=setting["n_layer"],
        num_heads=setting["n_head"],
        hidden_dim=setting["n_embd"],
        intermediate_dim=4 * setting["n_embd"],
        dropout=0.0,
        max_sequence_length=setting["n_ctx"],
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler=keras_hub.samplers.TopKSampler(k=40))
    random = np.random.default_rng(0)
    length = setting["prompt"] + setting["new"]
    mask = np.repeat((np.arange(length) < setting["prompt"])[None], setting["batch"], axis=0)

    def work() -> float:
        tokens = np.repeat(random.integers(0, setting["vocabulary"], (1, length), dtype=np.int32), setting["batch"], 0)
        made = model.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=None)
        return float(np.asarray(made["token_ids"]).shape[1] - setting["prompt"])

    return work


serve(build)
