"""Generates token by token with a KV cache of fixed capacity, in few compiled shapes.

Positions are learned, so a full context cannot slide by one token: the cached keys would all be at wrong positions.
When it is full, its last half is computed again as the beginning of a new context; SavedModels follow the same rule.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from keras import ops
from numpy.typing import NDArray

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.generation.counter_based_random import seed_words, stream_keys
from gpt2_trainer.generation.kv_cache import FixedKVCache
from gpt2_trainer.generation.penalties import penalize
from gpt2_trainer.generation.sampling import SamplingTensors, count_candidates, sample_tokens
from gpt2_trainer.kernels import packed_bfloat16
from gpt2_trainer.kernels.packed_bfloat16 import PackedMatrix
from gpt2_trainer.kernels.selection import create_model
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.gpt2 import Tensor
from gpt2_trainer.model.weights import POSITION_EMBEDDING, TOKEN_EMBEDDING, Weights, projection

_MIN_LENGTH = 16
_ROOM = 128

LoadedWeights = Mapping[str, Tensor | PackedMatrix]
"""Weights by name, as `Decoder.load` makes them; the vocabulary exact or padded."""


def kept_context(n_ctx: int) -> int:
    """Tokens that stay when the context is full."""
    return max(1, n_ctx // 2)


class DecodeState(NamedTuple):
    """What a step computes the next token of each row from, besides weights and KV cache; a tree of tensors.

    Args:
        token_ids: int32 [batch, time], tokens that the cache lacks, with padding after them.
        last: int32 scalar, index of the last token that is no padding.
        position: int32 scalar, tokens generated before.
        seed: uint32 [2], low and high word.
        samples: int32 [rows], number of each row's sample of its prompt.
        history: int32 [rows, capacity], tokens of prompt and output; None where nothing is penalized.
        history_length: int32 scalar, tokens of `history` that count.
    """

    token_ids: Tensor
    last: Tensor
    position: Tensor
    seed: Tensor
    samples: Tensor
    history: Tensor | None
    history_length: Tensor

    def following(self, token_ids: Tensor, last: int, history: Tensor | None) -> "DecodeState":
        """The state of the next step, with the history after this one."""
        length = int(self.history_length) + 1
        return self._replace(
            token_ids=token_ids,
            last=np.int32(last),
            position=np.int32(self.position + 1),
            history=None if history is None else _with_room(history, length),
            history_length=np.int32(length),
        )


class Decoder:
    """Generates with one model. Compiled programs are kept from call to call.

    Args:
        architecture: Sizes of the model.
        compute_dtype: Dtype of matrix products and of the KV cache, `float32` or `bfloat16`. On CPUs with JAX, bfloat16
            is that of the weights alone, and what is computed with them is float32.
    """

    def __init__(self, architecture: Architecture, compute_dtype: str = "float32") -> None:
        self._packs = compute_dtype == "bfloat16" and packed_bfloat16.is_supported()
        self._dtype = "float32" if self._packs else compute_dtype
        self._architecture = architecture
        self._model = create_model(architecture, self._dtype)
        self._steps: dict[int, Callable[..., Any]] = {}

    def load(self, weights: Weights) -> LoadedWeights:
        """Weights as `generate` takes them, in the compute dtype, so that no step has to convert them."""
        return {name: self._loaded(name, value) for name, value in weights.items()}

    def _loaded(self, name: str, value: NDArray[np.float32]) -> Tensor | PackedMatrix:
        if value.ndim == 1:
            return ops.convert_to_tensor(value, "float32")
        if not self._packs:
            return ops.convert_to_tensor(value, self._dtype)
        rounded = ops.cast(value, "bfloat16")
        full = ops.cast(rounded, "float32")
        head = projection(self._architecture)
        if name != head and name in (POSITION_EMBEDDING, TOKEN_EMBEDDING):
            return full
        # Logits are products with the head's transpose.
        packed = packed_bfloat16.pack(ops.transpose(rounded) if name == head else rounded)
        return full if packed is None else PackedMatrix(full, ops.convert_to_tensor(packed))

    def generate(
        self, weights: LoadedWeights, prompt: Sequence[int], samples: int, config: SamplingConfig, seed: int
    ) -> Iterator[NDArray[np.int32]]:
        """As `generate_batch` for one prompt, but yields int32 [samples]."""
        for tokens in self.generate_batch(weights, [prompt], samples, config, seed):
            yield tokens[0]

    def generate_batch(
        self,
        weights: LoadedWeights,
        prompts: Sequence[Sequence[int]],
        samples: int,
        config: SamplingConfig,
        seed: int,
    ) -> Iterator[NDArray[np.int32]]:
        """Generates from prompts of one length without end; the caller stops.

        While the caller looks at a token, the device computes the next one, where the backend is asynchronous.

        Args:
            weights: What `load` returned.
            prompts: Token ids, as many in each, at least one; of more than n_ctx the last ones count.
            samples: Sequences to generate of each prompt.
            config: How tokens are drawn.
            seed: A sequence depends on the seed, its prompt and its sample's number alone.

        Yields:
            int32 [prompts, samples], the next token of each.
        """
        tokens = self._tokens(weights, prompts, samples, config, seed)
        ready = next(tokens)
        for computing in tokens:
            yield np.asarray(ready).reshape(len(prompts), samples)
            ready = computing

    def _tokens(
        self,
        weights: LoadedWeights,
        prompts: Sequence[Sequence[int]],
        samples: int,
        config: SamplingConfig,
        seed: int,
    ) -> Iterator[Tensor]:
        """As `generate_batch`, but the tokens [rows, 1] are on the device, which may still compute them."""
        n_ctx = self._architecture.layers.n_ctx
        context = np.asarray([list(prompt)[-n_ctx:] for prompt in prompts], np.int32)
        state = self._first_state(context, samples, config, seed)
        step, sampling = self._compiled_step(config), SamplingTensors.of(config)
        # Room for what follows the prompt, so that short generations need one capacity alone.
        capacity, held = self._rounded(context.shape[1] + _ROOM), 0
        cache = FixedKVCache.empty(self._architecture, len(context), capacity, self._dtype, np.int32(0))
        generated: list[Tensor] = []
        while True:
            tokens, cache, history = step(dict(weights), cache._replace(length=np.int32(held)), state, sampling)
            yield tokens
            generated.append(tokens)
            held += int(state.last) + 1
            if len(context) < len(state.samples):
                context = np.repeat(context, samples, axis=0)
                cache = cache.repeated(self._architecture.layers.n_head, samples)
            if held < n_ctx:
                cache = cache.grown(self._rounded(held + 1))
                state = state.following(tokens, 0, history)
            else:
                context = np.concatenate([context, *map(np.asarray, generated)], axis=1)[:, -kept_context(n_ctx) :]
                generated.clear()
                held, state = 0, state.following(self._padded(context), context.shape[1] - 1, history)

    def _first_state(self, context: NDArray[np.int32], samples: int, config: SamplingConfig, seed: int) -> DecodeState:
        length = context.shape[1]
        history = _with_room(np.repeat(context, samples, axis=0), length) if config.penalizes else None
        return DecodeState(
            token_ids=self._padded(context),
            last=np.int32(length - 1),
            position=np.int32(0),
            seed=np.asarray(seed_words(seed), np.uint32),
            samples=np.tile(np.arange(samples, dtype=np.int32), len(context)),
            history=history,
            history_length=np.int32(length),
        )

    def _compiled_step(self, config: SamplingConfig) -> Callable[..., Any]:
        candidates = count_candidates(config, self._architecture.vocabulary_size)
        if candidates not in self._steps:
            # The cache's memory becomes that of the next cache.
            self._steps[candidates] = compiled(partial(self._step, candidates), donated=1)
        return self._steps[candidates]

    def _step(
        self,
        candidates: int,
        weights: LoadedWeights,
        cache: FixedKVCache,
        state: DecodeState,
        sampling: SamplingTensors,
    ) -> tuple[Tensor, FixedKVCache, Tensor | None]:
        """Computes one step: tokens int32 [rows, 1], and cache and history with the new tokens."""
        logits, cache = self._model.next_logits(weights, state.token_ids, cache, state.last)
        history = state.history
        if history is not None:
            logits = ops.repeat(logits, history.shape[0] // logits.shape[0], axis=0)
            logits = penalize(logits, history, state.history_length, sampling)
        keys = stream_keys((state.seed[0], state.seed[1]), state.samples)
        tokens = sample_tokens(logits, keys, state.position, sampling, candidates)[:, None]
        if history is not None:
            history = ops.slice_update(history, (0, state.history_length), tokens)
        return tokens, cache, history

    def _padded(self, context: NDArray[np.int32]) -> NDArray[np.int32]:
        """A context with tokens that nothing sees after it, up to a compiled length."""
        length = context.shape[1]
        return np.pad(context, ((0, 0), (0, self._rounded(length) - length if length > 1 else 0)))

    def _rounded(self, length: int) -> int:
        """The next compiled length: a power of two, at most n_ctx."""
        return min(max(_MIN_LENGTH, 1 << (length - 1).bit_length()), self._architecture.layers.n_ctx)


def _with_room(history: Tensor, length: int) -> Tensor:
    """A history with room for one token after `length`, in few shapes."""
    if length < history.shape[1]:
        return history
    return ops.pad(history, ((0, 0), (0, max(_ROOM, 1 << length.bit_length()) - history.shape[1])))
