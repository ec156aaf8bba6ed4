"""KerasHub's GPT2CausalLM, compiled with XLA, AdamW."""

import os
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import keras_hub
import numpy as np
from contender import Work, serve


def build(setting: dict) -> Work:
    """Makes a step on random tokens."""
    mixed = setting["precision"] == "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else "float32")
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
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, beta_2=0.95, weight_decay=0.1, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=sys.argv[2] == "xla",
    )
    random = np.random.default_rng(0)
    shape = (setting["batch"], setting["length"] + 1)
    mask = np.ones((setting["batch"], setting["length"]), np.int32)

    def work() -> float:
        tokens = random.integers(0, setting["vocabulary"], shape, dtype=np.int32)
        inputs = {"token_ids": tokens[:, :-1], "padding_mask": mask}
        return float(np.ravel(model.train_on_batch(inputs, tokens[:, 1:]))[0])

    return work


serve(build)
