"""LoRA adapters in the layout of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT's A is [rank, input] and its B [output, rank], the transposes of ours.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from gpt2_trainer.configuration.training import LoraConfig
from gpt2_trainer.model.lora import adapter_names
from gpt2_trainer.model.weights import Weights

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.transformer."
_PARTS = (".lora_A.weight", ".lora_B.weight")


def write_adapters(folder: Path, adapters: Weights, lora: LoraConfig) -> None:
    """Writes adapters into a new folder."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        # GPT-2's matrices are [input, output].
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = sorted({name.partition("/")[2] for name in adapters})
    tensors = {
        _PREFIX + weight.removesuffix(".weight") + part: np.ascontiguousarray(adapters[name].T)
        for weight in weights
        for name, part in zip(adapter_names(weight), _PARTS, strict=True)
    }
    save_file(tensors, folder / MODEL, {"format": "pt"})


def read_adapters(folder: Path) -> Weights:
    """Reads what `write_adapters` wrote. Raises OSError, ValueError or SafetensorError when it is not that."""
    adapters: Weights = {}
    for name, tensor in load_file(folder / MODEL).items():
        place = next((number for number, part in enumerate(_PARTS) if name.endswith(part)), None)
        if place is None or not name.startswith(_PREFIX):
            raise ValueError(f"{folder / MODEL} has the tensor {name}, which is no adapter of a GPT-2")
        weight = name.removeprefix(_PREFIX).removesuffix(_PARTS[place]) + ".weight"
        adapters[adapter_names(weight)[place]] = np.ascontiguousarray(tensor.T)
    return adapters
