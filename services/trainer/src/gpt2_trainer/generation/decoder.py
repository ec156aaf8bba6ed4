"""Generates token by token with a key-value cache of fixed capacity, in few compiled shapes.

Positions are learned, so a full context cannot slide by one token: the cached keys would all be at wrong places. When
it is full, the last half of it is computed anew as the beginning of a new context; the same rule holds in SavedModels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from gpt2_trainer.configuration.sampling import SamplingOptions
from gpt2_trainer.generation.noise import seed_words, stream_keys
from gpt2_trainer.generation.penalties import penalize
from gpt2_trainer.generation.sampling import count_candidates, draw
from gpt2_trainer.model import paired
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.network import Network, Tensor
from gpt2_trainer.model.paired import PairedMatrix
from gpt2_trainer.model.weights import POSITION_EMBEDDING, TOKEN_EMBEDDING, Weights, projection

_SMALLEST_SHAPE = 16
_ROOM = 128
_MAX_FLOAT32 = float(np.finfo(np.float32).max)

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


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """What draws depend on besides the logits.

    Args:
        options: How tokens are drawn.
        seed: uint32 [2], low and high word.
        samples: int32 [rows], number of each row's sample.
        history: int32 [rows, capacity], tokens of prompt and output; None without penalties.
        length: Tokens of the history that count.
    """

    options: SamplingOptions
    seed: NDArray[np.uint32]
    samples: NDArray[np.int32]
    history: Tensor | None
    length: int

    @classmethod
    def begin(cls, options: SamplingOptions, seed: int, context: NDArray[np.int32], samples: int) -> "_Draws":
        """Those of the first token, after a context [prompts, time]."""
        history = np.repeat(context, samples, axis=0) if options.penalizes else None
        return cls(
            options=options,
            seed=np.asarray(seed_words(seed), np.uint32),
            samples=np.tile(np.arange(samples, dtype=np.int32), len(context)),
            history=None if history is None else _with_room(history, context.shape[1]),
            length=context.shape[1],
        )

    @property
    def rows(self) -> int:
        """Sequences that are generated."""
        return len(self.samples)

    def following(self, history: Tensor | None) -> "_Draws":
        """Those of the next token, after a history that holds the one before."""
        length = self.length + 1
        return replace(self, history=None if history is None else _with_room(history, length), length=length)


def _with_room(history: Tensor, length: int) -> Tensor:
    """A history with room for one token after `length`, in few shapes."""
    if length < history.shape[1]:
        return history
    return ops.pad(history, ((0, 0), (0, max(_ROOM, 1 << length.bit_length()) - history.shape[1])))


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
        last = projection(self._network.architecture)
        if name != last and name in (POSITION_EMBEDDING, TOKEN_EMBEDDING):
            return full
        # What is multiplied by the last projection is so by its transpose.
        pairs = paired.pair(ops.transpose(rounded) if name == last else rounded)
        return full if pairs is None else PairedMatrix(full, ops.convert_to_tensor(pairs))

    def generate(
        self, weights: LoadedWeights, prompt: Sequence[int], samples: int, options: SamplingOptions, seed: int
    ) -> Iterator[NDArray[np.int32]]:
        """Goes on from one prompt; as `generate_batch`, but yields int32 [samples]."""
        for drawn in self.generate_batch(weights, [prompt], samples, options, seed):
            yield drawn[0]

    def generate_batch(
        self,
        weights: LoadedWeights,
        prompts: Sequence[Sequence[int]],
        samples: int,
        options: SamplingOptions,
        seed: int,
    ) -> Iterator[NDArray[np.int32]]:
        """Goes on from prompts of one length without end; the caller stops.

        While the caller looks at a token, the device is at work on the next, where the backend does not wait for it.

        Args:
            weights: Weights by name, the vocabulary padded.
            prompts: Token ids, as many in each, at least one; of more than n_ctx the last ones count.
            samples: Sequences to generate of each prompt.
            options: How tokens are drawn.
            seed: Seed; what is drawn depends on it, on the prompt and on the sample's number alone.

        Yields:
            int32 [prompts, samples], the next token of each.
        """
        ahead = self._steps(weights, prompts, samples, options, seed)
        drawn = next(ahead)
        for following in ahead:
            yield np.asarray(drawn).reshape(len(prompts), samples)
            drawn = following

    def _steps(
        self,
        weights: LoadedWeights,
        prompts: Sequence[Sequence[int]],
        samples: int,
        options: SamplingOptions,
        seed: int,
    ) -> Iterator[Tensor]:
        """As `generate_batch`, but the tokens [rows, 1] are on the device and may still be on their way."""
        n_ctx = self._network.architecture.layers.n_ctx
        context = np.asarray([list(prompt)[-n_ctx:] for prompt in prompts], np.int32)
        draws = _Draws.begin(options, seed, context, samples)
        new, length, filled = self._padded(context), context.shape[1], 0
        cache = self._empty_cache(len(context), length)
        made: list[Tensor] = []
        for position in count():
            drawn, cache, history = self._run(weights, cache, new, length, filled, draws, position)
            yield drawn
            made.append(drawn)
            filled += length
            draws = draws.following(history)
            if len(context) < draws.rows:
                context = np.repeat(context, samples, axis=0)
                cache = self._repeated(cache, samples)
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
        draws: "_Draws",
        position: int,
    ) -> tuple[Tensor, Cache, Tensor | None]:
        options = draws.options
        results: tuple[Tensor, Cache, Tensor | None] = self._advance(options)(
            dict(weights),
            cache,
            new,
            np.int32(filled),
            np.int32(length - 1),
            draws.history,
            np.int32(draws.length),
            np.float32(options.repetition_penalty),
            np.int32(options.no_repeat_ngram_size),
            draws.seed,
            draws.samples,
            np.int32(position),
            np.float32(min(options.temperature, _MAX_FLOAT32)),
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
        history: Tensor | None,
        length: Tensor,
        repetition_penalty: Tensor,
        ngram_size: Tensor,
        seed: Tensor,
        samples: Tensor,
        position: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, Cache, Tensor | None]:
        capacity = cache[0][0].shape[1]
        positions = start + ops.arange(new.shape[1], dtype="int32")
        # Keys after a token's position are of padding or of an older context: none of them is seen.
        mask = ops.arange(capacity, dtype="int32")[None, :] <= positions[:, None]
        memory = FixedMemory(cache, start)
        logits = self._network.next_logits(weights, new, memory, start, mask, last)
        if history is not None:
            logits = ops.repeat(logits, history.shape[0] // logits.shape[0], axis=0)
            logits = penalize(logits, history, length, repetition_penalty, ngram_size)
        keys = stream_keys((seed[0], seed[1]), samples)
        drawn = draw(logits, keys, position, temperature, top_k, top_p, candidates)[:, None]
        if history is not None:
            history = ops.slice_update(history, (0, length), drawn)
        return drawn, memory.cache, history

    def _rounded(self, length: int) -> int:
        """The next compiled shape: a power of two, at most n_ctx."""
        return min(max(_SMALLEST_SHAPE, 1 << (length - 1).bit_length()), self._network.architecture.layers.n_ctx)

    def _empty_cache(self, batch: int, length: int) -> Cache:
        architecture = self._network.architecture
        # Room for what follows the prompt, so that short generations need one capacity alone.
        shape = (batch * architecture.layers.n_head, self._rounded(length + _ROOM), architecture.head_size)
        dtype = self._network.precision
        return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in range(architecture.layers.n_layer)]

    def _repeated(self, cache: Cache, samples: int) -> Cache:
        """The cache of prompts, for several samples of each."""
        heads = self._network.architecture.layers.n_head

        def repeated(rows: Tensor) -> Tensor:
            shape = rows.shape
            prompts = ops.reshape(rows, (shape[0] // heads, heads, *shape[1:]))
            return ops.reshape(ops.repeat(prompts, samples, axis=0), (shape[0] * samples, *shape[1:]))

        return [(repeated(keys), repeated(values)) for keys, values in cache]

    def _grown(self, cache: Cache, length: int) -> Cache:
        """The cache, with twice the capacity when `length` tokens do not fit."""
        missing = self._rounded(length) - cache[0][0].shape[1]
        if missing <= 0:
            return cache
        widths = ((0, 0), (0, missing), (0, 0))
        return [(ops.pad(keys, widths), ops.pad(values, widths)) for keys, values in cache]
