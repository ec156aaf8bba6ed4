"""Tensors of safetensors files under GPT-2's own names: wrappers' prefixes removed, every float dtype as float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes bfloat16 known to NumPy, which safetensors asks for it
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gpt2_common.errors import InvalidRequest

_FLOATS = ("F64", "F32", "F16", "BF16")
# Modules that torch.compile, DataParallel, FSDP, DeepSpeed and activation checkpointing wrap around others.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Attributes that hold the decoder in GPT2LMHeadModel and in training frameworks' classes.
_HOLDERS = frozenset({"transformer", "model"})


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes of modules that wrapped the model when it was saved."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _HOLDERS:
        parts = parts[1:]
    return ".".join(parts)


def open_tensors(path: Path, field: str) -> Any:
    """Opens a safetensors file. Raises InvalidRequest when it cannot be read."""
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


class Tensors:
    """The tensors of a model's shards, by our names.

    Args:
        paths: The files.
        files: The same, open.
        field: Field of the request that named them, for errors.
    """

    def __init__(self, paths: Sequence[Path], files: Sequence[Any], field: str) -> None:
        self._field = field
        self._places: dict[str, tuple[Path, Any, str]] = {}
        for path, file in zip(paths, files, strict=True):
            for there in file.keys():  # noqa: SIM118 - no mapping
                name = plain_name(there)
                if name in self._places:
                    raise self._refused(f"the tensor {name} is there twice, the second time in {path}")
                self._places[name] = path, file, there

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._places)

    def rows(self, name: str) -> int:
        """Length of a tensor's first axis; 0 where there is no such tensor, or it has none."""
        if name not in self._places:
            return 0
        path, file, there = self._places[name]
        try:
            shape = file.get_slice(there).get_shape()
        except (OSError, SafetensorError) as error:
            raise self._refused(f"{path} cannot be read: {error}") from error
        return int(shape[0]) if shape else 0

    def read(self, name: str, shape: tuple[int, ...], *, more_rows: bool = False) -> NDArray[np.float32]:
        """A tensor of a shape, as float32.

        Args:
            name: Its name.
            shape: The shape that it must have.
            more_rows: Whether it may have more rows, which are ignored.
        """
        path, file, there = self._places[name]
        try:
            found = file.get_slice(there)
            self._check(name, found, shape, more_rows)
            with np.errstate(over="ignore"):
                value = np.asarray(file.get_tensor(there))[: shape[0]].astype(np.float32)
        except (OSError, SafetensorError, TypeError) as error:
            raise self._refused(f"{path} cannot be read: {error}") from error
        if not np.isfinite(value).all():
            raise self._refused(f"the tensor {name} holds a number that is not finite")
        return value

    def _check(self, name: str, found: Any, shape: tuple[int, ...], more_rows: bool) -> None:
        there, kind = tuple(found.get_shape()), found.get_dtype()
        longer = more_rows and there[1:] == shape[1:] and there[:1] > shape[:1]
        if there != shape and not longer:
            advice = ": transpose it, as GPT2LMHeadModel of `transformers` has it" if there == shape[::-1] else ""
            wanted = f"where config.json asks for {list(shape)}{advice}"
            raise self._refused(f"the tensor {name} has shape {list(there)} {wanted}")
        if kind in _FLOATS:
            return
        if kind.startswith("F"):
            advice = "which is not read: save the model in float32, float16 or bfloat16"
            raise self._refused(f"the tensor {name} is of type {kind}, {advice}")
        raise self._refused(f"the tensor {name} is of type {kind}, not floating point")

    def _refused(self, description: str) -> InvalidRequest:
        return InvalidRequest([(self._field, description)])
