"""Formats that ImportCheckpoint does not read, recognised by file names, with what to do about each.

Names alone decide, so that a remote folder is checked by its listing before anything is copied.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from gpt2_common.hub import lfs_problem

_LFS_BYTES = 1024
_SAVE = "and save it by `save_pretrained`, which writes safetensors"

# What training tools save beside a model.
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)\w*\.(bin|pt|pth|pkl)")
# Name, what it is, what to do; the first match counts.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"adapter_config\.json|adapter_model\.(safetensors|bin)",
        "a LoRA adapter (PEFT), not a whole model",
        "merge it into its base model (`merge_and_unload` of the package peft) " + _SAVE,
    ),
    (
        r".+\.gguf|ggml-.+\.bin",
        "a model of llama.cpp (GGUF)",
        "import the Hugging Face or OpenAI model that it was converted from",
    ),
    (
        r"model\.weights\.h5|task\.json|preprocessor\.json|.+\.keras",
        "a Keras model or KerasHub preset",
        "export it in Hugging Face's format (`export_to_transformers` of KerasHub), which writes config.json and "
        "model.safetensors",
    ),
    (
        r"ckpt\.pt",
        "a pickle file (nanoGPT's checkpoint), which could run code and is not read",
        "load it where you trust it, transpose the matrices of its layers (`c_attn`, `c_proj`, `c_fc`) "
        "as GPT2LMHeadModel of `transformers` has them, " + _SAVE,
    ),
    (
        r".+\.(bin|pt|pth|ckpt|pkl|pickle|ot|pyt|joblib)|pytorch_model\.bin\.index\.json|.+\.(bin|pt)\.index\.json",
        "a pickle file, which could run code and is not read",
        "load it with `transformers` where you trust it " + _SAVE,
    ),
    (
        r"tf_model.*\.h5|.+\.h5",
        "a file of TensorFlow weights (HDF5)",
        "load it with `transformers` (`from_pretrained(..., from_tf=True)`) " + _SAVE,
    ),
    (
        r".+\.msgpack",
        "a file of Flax weights",
        "load it with `transformers` (`from_pretrained(..., from_flax=True)`) " + _SAVE,
    ),
    (
        r".+\.(onnx|ort|tflite|mlmodel|mlpackage|engine)|saved_model\.pb",
        "a graph for inference",
        "import the model that it was exported from",
    ),
    (
        r".+\.(npz|npy)",
        "a file of NumPy arrays",
        "save it in Hugging Face's format, config.json and model.safetensors",
    ),
    (
        r".+\.safetensors",
        "a safetensors file of another name, or a part without its model.safetensors.index.json",
        "rename it to model.safetensors, or fetch the index too",
    ),
)
# Names of tensors that are not a plain model's.
_TENSORS: tuple[tuple[str, str, str], ...] = (
    (
        r"(.+\.)?lora_(A|B|embedding_[AB]|magnitude_vector)(\..+)?",
        "is a LoRA adapter's",
        "merge it into the weights (`merge_and_unload` of the package peft) and save the model again",
    ),
    (
        r".+\.(qweight|qzeros|g_idx|SCB|weight_scale|weight\.(absmax|quant_map|quant_state\..+))",
        "is of quantised weights (GPTQ, AWQ, bitsandbytes)",
        "import the model that was quantised, in float32, float16 or bfloat16",
    ),
)


def unsupported_tensor(names: Collection[str]) -> str | None:
    """Describes a tensor of an unsupported kind of weights, and what to do; None when there is none."""
    for pattern, kind, advice in _TENSORS:
        if found := sorted(name for name in names if re.fullmatch(pattern, name)):
            return f"the tensor {found[0]} {kind}: {advice}"
    return None


def unsupported_format(names: Collection[str]) -> str | None:
    """Describes what a folder without readable weights holds instead.

    Args:
        names: Names of the files in it.

    Returns:
        A clause with the format and what to do; None when no name is known.
    """
    there = [name for name in names if not _BESIDE.fullmatch(name)]
    for pattern, kind, advice in _KINDS:
        if found := sorted(name for name in there if re.fullmatch(pattern, name, re.IGNORECASE)):
            return f"{found[0]} is {kind}: {advice}"
    return None


def file_problem(path: Path) -> str:
    """What is wrong with a source that is a file and not a folder."""
    if problem := _lfs_problem(path):
        return f"{problem}, and name its folder"
    if path.name.endswith((".safetensors", ".json")) and (path.parent / "config.json").is_file():
        return f"{path} is a file, not a folder: name its folder, {path.parent}, which holds config.json too"
    if path.name == "model.safetensors":
        return f"{path} is a file, not a folder: put it into a folder with its config.json and name that"
    problem = unsupported_format([path.name])
    return f"{path} is a file, not a folder: " + (problem or "name the folder with config.json and model.safetensors")


def pointer_problem(paths: Iterator[Path]) -> str | None:
    """Names the first of a model's files that is a Git LFS pointer; None when each is the file itself."""
    return next((problem for path in sorted(paths) if (problem := _lfs_problem(path))), None)


def _lfs_problem(path: Path) -> str | None:
    if not path.is_file() or path.stat().st_size > _LFS_BYTES:
        return None
    return lfs_problem(path.name, path.read_bytes())
