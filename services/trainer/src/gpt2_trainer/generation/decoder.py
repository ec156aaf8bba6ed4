"""Generates token by token with a key-value cache of fixed capacity, in few compiled shapes.

Positions are learned, so a full context cannot slide by one token: the cached keys would all be at wrong places. When
it is full, the last half of it is computed anew as the beginning of a new context; the same rule holds in SavedModels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from gpt2_trainer.configuration.sampling import SamplingOptions
from gpt2_trainer.generation.sampling import count_candidates, draw
from gpt2_trainer.model import paired
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.network import Network, Tensor
from gpt2_trainer.model.paired import PairedMatrix
from gpt2_trainer.model.weights import POSITION_EMBEDDING, TOKEN_EMBEDDING, Weights

_SMALLEST_SHAPE = 16
_ROOM = 128

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch * head, capacity, head_size]."""
LoadedWeights = Mapping[str, Tensor | PairedMatrix]
"""Weights by name, as `Decoder.load` makes them; the vocabulary exact or padded."""


def kept_context(n_ctx: int) -> int:
    """Tokens that stay when the context is full."""
    return max(1, n_ctx // 2)


class FixedMemory:
    """Keys and values in a cache of fixed capacity, filled from `start` on. Implements network.Memory."""

    def __init__(self, cache: Cache, start: Tensor) -> None:
        self.cache = list(cache)
        self._start = start

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See network.Memory."""
        old_keys, old_values = self.cache[layer]
        place = (0, self._start, 0)
        self.cache[layer] = (ops.slice_update(old_keys, place, keys), ops.slice_update(old_values, place, values))
        return self.cache[layer]


class Decoder:
    """Generates with one network. Compiled shapes are kept from call to call.

    Args:
        network: The model; keys and values are kept in its precision. Where the CPU has no fast products of bfloat16,
            only the matrices are, and what is computed with them is float32.
    """

    def __init__(self, network: Network) -> None:
        self._pairs = network.precision == "bfloat16" and paired.is_fast()
        self._network = replace(network, precision="float32") if self._pairs else network
        self._advances: dict[int, Callable[..., Any]] = {}

    def load(self, weights: Weights) -> LoadedWeights:
        """Weights as `generate` takes them, in the network's precision, so that no step has to convert them."""
        return {name: self._loaded(name, value) for name, value in weights.items()}

    def _loaded(self, name: str, value: NDArray[np.float32]) -> Tensor | PairedMatrix:
        if value.ndim == 1:
            return ops.convert_to_tensor(value, "float32")
        if not self._pairs:
            return ops.convert_to_tensor(value, self._network.precision)
        rounded = ops.cast(value, "bfloat16")
        full = ops.cast(rounded, "float32")
        if name == POSITION_EMBEDDING:
            return full
        # What is multiplied by the embedding is so by its transpose.
        pairs = paired.pair(ops.transpose(rounded) if name == TOKEN_EMBEDDING else rounded)
        return full if pairs is None else PairedMatrix(full, ops.convert_to_tensor(pairs))

    def generate(
        self, weights: LoadedWeights, prompt: Sequence[int], samples: int, options: SamplingOptions, seed: int
    ) -> Iterator[NDArray[np.int32]]:
        """Goes on from a prompt without end; the caller stops.

        While the caller looks at a token, the device is at work on the next, where the backend does not wait for it.

        Args:
            weights: Weights by name, the vocabulary padded.
            prompt: Token ids, at least one; of more than n_ctx the last ones count.
            samples: Sequences to generate side by side.
            options: How tokens are drawn.
            seed: Seed; sample i is the same however many there are.

        Yields:
            int32 [samples], the next token of each.
        """
        ahead = self._steps(weights, prompt, samples, options, seed)
        drawn = next(ahead)
        for following in ahead:
            yield np.asarray(drawn)[:, 0]
            drawn = following

    def _steps(
        self, weights: LoadedWeights, prompt: Sequence[int], samples: int, options: SamplingOptions, seed: int
    ) -> Iterator[Tensor]:
        """As `generate`, but the tokens [samples, 1] are on the device and may still be on their way."""
        n_ctx = self._network.architecture.layers.n_ctx
        random = [np.random.Generator(np.random.Philox(key=[seed % 2**64, sample])) for sample in range(samples)]
        context = np.asarray([list(prompt)[-n_ctx:]], np.int32)
        new, length, filled, cache = self._padded(context), context.shape[1], 0, self._empty_cache(1, context.shape[1])
        made: list[Tensor] = []
        while True:
            uniform = np.asarray([generator.random(dtype=np.float32) for generator in random], np.float32)
            drawn, cache = self._run(weights, cache, new, length, filled, uniform, options)
            yield drawn
            made.append(drawn)
            filled += length
            if len(context) < samples:
                context = np.repeat(context, samples, axis=0)
                copies = (samples, 1, 1)
                cache = [(ops.tile(keys, copies), ops.tile(values, copies)) for keys, values in cache]
            if filled < n_ctx:
                new, length, cache = drawn, 1, self._grown(cache, filled + 1)
            else:
                context = np.concatenate([context, *map(np.asarray, made)], axis=1)[:, -kept_context(n_ctx) :]
                made.clear()
                new, length, filled = self._padded(context), context.shape[1], 0

    def _run(
        self,
        weights: LoadedWeights,
        cache: Cache,
        new: Tensor,
        length: int,
        filled: int,
        uniform: NDArray[np.float32],
        options: SamplingOptions,
    ) -> tuple[Tensor, Cache]:
        results: tuple[Tensor, Cache] = self._advance(options)(
            dict(weights),
            cache,
            new,
            np.int32(filled),
            np.int32(length - 1),
            uniform,
            np.float32(options.temperature),
            np.int32(options.top_k),
            np.float32(options.top_p),
        )
        return results

    def _padded(self, context: NDArray[np.int32]) -> NDArray[np.int32]:
        """A context with tokens that nothing sees after it, up to a compiled shape."""
        length = context.shape[1]
        return np.pad(context, ((0, 0), (0, self._rounded(length) - length if length > 1 else 0)))

    def _advance(self, options: SamplingOptions) -> Callable[..., Any]:
        candidates = count_candidates(options, self._network.architecture.vocabulary_size)
        if candidates not in self._advances:
            self._advances[candidates] = compiled(partial(self._next_tokens, candidates), donated=1)
        return self._advances[candidates]

    def _next_tokens(
        self,
        candidates: int,
        weights: LoadedWeights,
        cache: Cache,
        new: Tensor,
        start: Tensor,
        last: Tensor,
        uniform: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, Cache]:
        capacity = cache[0][0].shape[1]
        positions = start + ops.arange(new.shape[1], dtype="int32")
        # Keys after a token's position are of padding or of an older context: none of them is seen.
        mask = ops.arange(capacity, dtype="int32")[None, :] <= positions[:, None]
        memory = FixedMemory(cache, start)
        logits = self._network.next_logits(weights, new, memory, start, mask, last)
        return draw(logits, uniform, temperature, top_k, top_p, candidates)[:, None], memory.cache

    def _rounded(self, length: int) -> int:
        """The next compiled shape: a power of two, at most n_ctx."""
        return min(max(_SMALLEST_SHAPE, 1 << (length - 1).bit_length()), self._network.architecture.layers.n_ctx)

    def _empty_cache(self, batch: int, length: int) -> Cache:
        architecture = self._network.architecture
        # Room for what follows the prompt, so that short generations need one capacity alone.
        shape = (batch * architecture.layers.n_head, self._rounded(length + _ROOM), architecture.head_size)
        dtype = self._network.precision
        return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in range(architecture.layers.n_layer)]

    def _grown(self, cache: Cache, length: int) -> Cache:
        """The cache, with twice the capacity when `length` tokens do not fit."""
        missing = self._rounded(length) - cache[0][0].shape[1]
        if missing <= 0:
            return cache
        widths = ((0, 0), (0, missing), (0, 0))
        return [(ops.pad(keys, widths), ops.pad(values, widths)) for keys, values in cache]
