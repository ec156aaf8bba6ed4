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

It is the same network and the same sampling as in training and in the service, in standard TensorFlow operations: a
row's text depends on its prompt, the seed and the sample's number (0 in `generate`), not on the other rows. The
cache of keys and values grows with the text, so that a short prompt costs little and no size is fixed.
"""

from pathlib import Path
from typing import Any

import tensorflow as tf

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.generation.decoder import kept_context
from gpt2_trainer.generation.noise import stream_keys
from gpt2_trainer.generation.penalties import penalize
from gpt2_trainer.generation.sampling import draw
from gpt2_trainer.model.network import Network
from gpt2_trainer.model.weights import Weights

SIGNATURES = ("logits", "generate", "generate_samples")


class GrowingMemory:
    """Keys and values in tensors that grow. Implements network.Memory."""

    def __init__(self, keys: list[Any], values: list[Any]) -> None:
        self.keys = list(keys)
        self.values = list(values)

    def extend(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """See network.Memory."""
        self.keys[layer] = tf.concat([self.keys[layer], keys], axis=1)
        self.values[layer] = tf.concat([self.values[layer], values], axis=1)
        return self.keys[layer], self.values[layer]


class ServedModel(tf.Module):
    """A network with its weights.

    Args:
        architecture: Sizes.
        weights: Weights by name, the vocabulary exact.
    """

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__()
        self._network = Network(architecture=architecture)
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
        n_ctx = self._network.architecture.layers.n_ctx
        message = f"token_ids: a row has more than the {n_ctx} tokens that the model has positions for"
        with tf.control_dependencies([tf.debugging.assert_less_equal(tf.shape(token_ids)[1], n_ctx, message)]):
            return {"logits": self._network.logits(self._weights, tf.identity(token_ids))}

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
        architecture = self._network.architecture
        layers, heads, end = architecture.layers.n_layer, architecture.layers.n_head, architecture.end_token_id
        batch = tf.shape(token_ids)[0]
        empty = tf.zeros((batch * heads, 0, architecture.head_size))
        message = "token_ids: each row needs at least one token"
        with tf.control_dependencies([tf.debugging.assert_positive(tf.shape(token_ids)[1], message)]):
            prompts = tf.identity(token_ids[:, -architecture.layers.n_ctx :])
        streams = stream_keys((_word(seed, 0), _word(seed, 1)), samples)
        penalizes = tf.not_equal(repetition_penalty, 1.0) | (no_repeat_ngram_size > 0)

        def penalized(logits: Any, made: Any) -> Any:
            history = tf.concat([prompts, made], axis=1)
            return penalize(logits, history, tf.shape(history)[1], repetition_penalty, no_repeat_ngram_size)

        def goes_on(number: Any, _context: Any, _keys: Any, _values: Any, _made: Any, ended: Any) -> Any:
            return (number < max_tokens) & ~tf.reduce_all(ended)

        def step(number: Any, context: Any, keys: Any, values: Any, made: Any, ended: Any) -> Any:
            logits, context, memory = self._advance(context, keys, values)
            logits = tf.cond(penalizes, lambda: penalized(logits, made), lambda: logits)
            drawn = tf.where(ended, end, draw(logits, streams, number, temperature, top_k, top_p))
            context, made = (tf.concat([rows, drawn[:, None]], axis=1) for rows in (context, made))
            return number + 1, context, memory.keys, memory.values, made, ended | (drawn == end)

        rows = tf.TensorShape([None, None])
        caches = [tf.TensorShape([None, None, architecture.head_size])] * layers
        made, ended = tf.zeros((batch, 0), tf.int32), tf.zeros(batch, tf.bool)
        state = (tf.constant(0), prompts, [empty] * layers, [empty] * layers, made, ended)
        shapes = (tf.TensorShape([]), rows, caches, caches, rows, tf.TensorShape([None]))
        *_, made, ended = tf.while_loop(goes_on, step, state, shapes)
        is_text = tf.math.cumprod(tf.cast(made != end, tf.int32), axis=1)
        return {"token_ids": made, "lengths": tf.reduce_sum(is_text, axis=1)}

    def _advance(self, context: Any, keys: list[Any], values: list[Any]) -> tuple[Any, Any, GrowingMemory]:
        """Takes in the tokens that the cache lacks; when it is full, begins anew with the context's last part."""
        n_ctx = self._network.architecture.layers.n_ctx
        filled = tf.shape(keys[0])[1]
        full = filled >= n_ctx
        context = context[:, tf.where(full, tf.shape(context)[1] - kept_context(n_ctx), 0) :]
        dropped = tf.where(full, filled, 0)
        memory = GrowingMemory([item[:, dropped:] for item in keys], [item[:, dropped:] for item in values])
        filled -= dropped
        new = context[:, filled:]
        positions = tf.range(filled, tf.shape(context)[1])
        mask = tf.range(tf.shape(context)[1])[None, :] <= positions[:, None]
        last = tf.shape(new)[1] - 1
        return self._network.next_logits(self._weights, new, memory, filled, mask, last), context, memory


def _word(seed: Any, number: int) -> Any:
    """A 32-bit word of an int64 scalar, the low one first."""
    return tf.bitcast(seed, tf.uint32)[number]


def write_saved_model(folder: Path, model: ServedModel) -> None:
    """Writes a SavedModel."""
    tf.saved_model.save(model, str(folder), {name: getattr(model, name) for name in SIGNATURES})
