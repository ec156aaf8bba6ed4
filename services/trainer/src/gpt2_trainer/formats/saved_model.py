"""The TF SavedModel that TensorFlow Serving loads: GPT-2 with its weights and three signatures.

    logits            token_ids int32 [batch, time]
                      → logits float32 [batch, time, vocabulary]
    generate          token_ids int32 [batch, time], the prompts; max_tokens int32; temperature float32; top_k int32;
                      top_p float32; seed int64
                      → token_ids int32 [batch, n], what follows each prompt, filled up with the end token; n is at most
                        max_tokens, and less when all rows have ended
                      → lengths int32 [batch], tokens before the end token
    generate_samples  as generate, and samples int32 [batch], the number of each row's sample of its prompt, from 0;
                      repetition_penalty float32, 1: none; no_repeat_ngram_size int32, 0: none

It is the model of `model/gpt2.py` and the sampling of the service, in standard TensorFlow operations. A row's text
depends on its prompt, the seed and the sample's number (0 in `generate`), not on the other rows. The KV cache grows
with the text, so that a short prompt costs little and no size is fixed.
"""

from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.generation.counter_based_random import stream_keys
from gpt2_trainer.generation.decoder import kept_context
from gpt2_trainer.generation.penalties import penalize
from gpt2_trainer.generation.sampling import SamplingTensors, sample_tokens
from gpt2_trainer.model.gpt2 import GPT2
from gpt2_trainer.model.weights import Weights

SIGNATURES = ("logits", "generate", "generate_samples")


class GrowingKVCache(NamedTuple):
    """Growing keys and values by layer, [batch · heads, time, head_size]. Implements `gpt2.KVCache`."""

    keys: list[Any]
    values: list[Any]
    length: Any

    def mask(self, positions: Any) -> Any:
        """See `gpt2.KVCache`."""
        return tf.range(positions[-1] + 1)[None, :] <= positions[:, None]

    def append(self, layer: int, keys: Any, values: Any) -> tuple["GrowingKVCache", Any, Any]:
        """See `gpt2.KVCache`. `length` stays, as it is where the other layers append, too."""
        all_keys, all_values = list(self.keys), list(self.values)
        all_keys[layer] = tf.concat([self.keys[layer], keys], axis=1)
        all_values[layer] = tf.concat([self.values[layer], values], axis=1)
        return self._replace(keys=all_keys, values=all_values), all_keys[layer], all_values[layer]


class ServedModel(tf.Module):
    """A model with its weights.

    Args:
        architecture: Sizes.
        weights: Weights by name, the vocabulary exact.
    """

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__()
        self._model = GPT2(architecture=architecture)
        self._weights = {name: tf.Variable(value, trainable=False, name=name) for name, value in weights.items()}
        token_ids = tf.TensorSpec((None, None), tf.int32, "token_ids")
        controls = (
            tf.TensorSpec((), tf.int32, "max_tokens"),
            tf.TensorSpec((), tf.float32, "temperature"),
            tf.TensorSpec((), tf.int32, "top_k"),
            tf.TensorSpec((), tf.float32, "top_p"),
            tf.TensorSpec((), tf.int64, "seed"),
        )
        self.logits: Any = tf.function(self._logits, [token_ids], autograph=False)
        penalties = (
            tf.TensorSpec((None,), tf.int32, "samples"),
            tf.TensorSpec((), tf.float32, "repetition_penalty"),
            tf.TensorSpec((), tf.int32, "no_repeat_ngram_size"),
        )
        inputs = [token_ids, *controls, *penalties]
        self.generate_samples: Any = tf.function(self._generate_samples, inputs, autograph=False)
        self.generate: Any = tf.function(self._generate, [token_ids, *controls], autograph=False)

    def _logits(self, token_ids: Any) -> dict[str, Any]:
        n_ctx = self._model.architecture.layers.n_ctx
        message = f"token_ids: a row has more than the {n_ctx} tokens that the model has positions for"
        with tf.control_dependencies([tf.debugging.assert_less_equal(tf.shape(token_ids)[1], n_ctx, message)]):
            return {"logits": self._model.logits(self._weights, tf.identity(token_ids))}

    def _generate(self, token_ids: Any, *controls: Any) -> Any:
        return self.generate_samples(token_ids, *controls, tf.zeros(tf.shape(token_ids)[:1], tf.int32), 1.0, 0)

    def _generate_samples(
        self,
        token_ids: Any,
        max_tokens: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        seed: Any,
        samples: Any,
        repetition_penalty: Any,
        no_repeat_ngram_size: Any,
    ) -> dict[str, Any]:
        architecture = self._model.architecture
        layers, heads, end = architecture.layers.n_layer, architecture.layers.n_head, architecture.end_token_id
        batch = tf.shape(token_ids)[0]
        empty = tf.zeros((batch * heads, 0, architecture.head_size))
        message = "token_ids: each row needs at least one token"
        with tf.control_dependencies([tf.debugging.assert_positive(tf.shape(token_ids)[1], message)]):
            prompts = tf.identity(token_ids[:, -architecture.layers.n_ctx :])
        streams = stream_keys((_word(seed, 0), _word(seed, 1)), samples)
        sampling = SamplingTensors(temperature, top_k, top_p, repetition_penalty, no_repeat_ngram_size)
        penalizes = tf.not_equal(repetition_penalty, 1.0) | (no_repeat_ngram_size > 0)

        def penalized(logits: Any, made: Any) -> Any:
            history = tf.concat([prompts, made], axis=1)
            return penalize(logits, history, tf.shape(history)[1], sampling)

        def is_running(position: Any, _context: Any, _keys: Any, _values: Any, _made: Any, ended: Any) -> Any:
            return (position < max_tokens) & ~tf.reduce_all(ended)

        def step(position: Any, context: Any, keys: Any, values: Any, made: Any, ended: Any) -> Any:
            logits, context, cache = self._advance(context, keys, values)
            logits = tf.cond(penalizes, lambda: penalized(logits, made), lambda: logits)
            drawn = tf.where(ended, end, sample_tokens(logits, streams, position, sampling))
            context, made = (tf.concat([rows, drawn[:, None]], axis=1) for rows in (context, made))
            return position + 1, context, cache.keys, cache.values, made, ended | (drawn == end)

        rows = tf.TensorShape([None, None])
        caches = [tf.TensorShape([None, None, architecture.head_size])] * layers
        made, ended = tf.zeros((batch, 0), tf.int32), tf.zeros(batch, tf.bool)
        state = (tf.constant(0), prompts, [empty] * layers, [empty] * layers, made, ended)
        shapes = (tf.TensorShape([]), rows, caches, caches, rows, tf.TensorShape([None]))
        *_, made, ended = tf.while_loop(is_running, step, state, shapes)
        is_text = tf.math.cumprod(tf.cast(made != end, tf.int32), axis=1)
        return {"token_ids": made, "lengths": tf.reduce_sum(is_text, axis=1)}

    def _advance(self, context: Any, keys: list[Any], values: list[Any]) -> tuple[Any, Any, GrowingKVCache]:
        """Appends the tokens that the cache lacks; a full cache begins again with the last part of the context."""
        n_ctx = self._model.architecture.layers.n_ctx
        held = tf.shape(keys[0])[1]
        is_full = held >= n_ctx
        context = context[:, tf.where(is_full, tf.shape(context)[1] - kept_context(n_ctx), 0) :]
        dropped = tf.where(is_full, held, 0)
        held -= dropped
        cache = GrowingKVCache([item[:, dropped:] for item in keys], [item[:, dropped:] for item in values], held)
        new = context[:, held:]
        logits, cache = self._model.next_logits(self._weights, new, cache, tf.shape(new)[1] - 1)
        return logits, context, cache


def _word(seed: Any, number: int) -> Any:
    """A 32-bit word of an int64 scalar, the low one first."""
    return tf.bitcast(seed, tf.uint32)[number]


def write_saved_model(folder: Path, model: ServedModel) -> None:
    """Writes a SavedModel."""
    tf.saved_model.save(model, str(folder), {name: getattr(model, name) for name in SIGNATURES})
