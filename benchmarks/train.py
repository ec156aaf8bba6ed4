"""Training speed: ours beside KerasHub's and Hugging Face's GPT-2, in one run.

    make setup peers
    .venv/bin/python benchmarks/train.py [--size small|124M|124M-1024|1558M] [--precision float32|bfloat16] [--rounds N]
    .venv/bin/python benchmarks/train.py --kernels      # ours beside itself without each group of kernels
    .venv/bin/python benchmarks/train.py --isa avx2     # as a processor without AVX-512 and AMX would
    .venv/bin/python benchmarks/train.py --auto         # also what the calibration of `auto` chooses

Each contender runs in its own process with all cores and the same weights' sizes, batch and optimizer (AdamW with
clipping); they take turns. Without `make peers`, ours runs alone.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from training.settings import architecture_of, options_of
from turns import FOLDER, Contender, compare

from gpt2_trainer.calibration.calibration import Calibration
from gpt2_trainer.memory import MALLOC_ENVIRONMENT
from gpt2_trainer.model.compile_cache import CompileCacheOptions
from gpt2_trainer.model.processor import Processor
from gpt2_trainer.training.mfu import flops_per_token

ROOT = FOLDER.parent
PEERS = str(ROOT / ".peers" / "bin" / "python")
SIZES = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_ctx": 128, "vocabulary": 8192, "batch": 8, "length": 128},
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "vocabulary": 50257, "batch": 4, "length": 256},
    "124M-1024": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_ctx": 1024,
        "vocabulary": 50257,
        "batch": 32,
        "length": 1024,
    },
    "1558M": {
        "n_layer": 48,
        "n_head": 25,
        "n_embd": 1600,
        "n_ctx": 1024,
        "vocabulary": 50257,
        "batch": 4,
        "length": 1024,
    },
}
"""The last two are for GPUs."""
OURS = ("ours tensorflow", "ours jax")
TORCH_MODES = ("eager", "compiled", "flash")
STEPS_A_TURN = {"small": 10, "124M": 1, "124M-1024": 20, "1558M": 10}
KERNELS = {
    "custom_gradients": ("layer_norm", "attention", "causal_attention"),
    "cross_entropy": ("token_losses", "mean_loss"),
    "between products": ("gelu",),
    "any": ("layer_norm", "gelu", "attention", "causal_attention", "matmul", "token_losses", "mean_loss"),
}
"""What each contender of `--kernels` computes as the reference does."""

ISAS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "amx": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX", "ATEN_CPU_CAPABILITY": "avx512"},
}
"""Variables that hold oneDNN (in TensorFlow and PyTorch), PyTorch's kernels and MKL to an instruction set."""
XLA_ISAS = {"avx2": "AVX2", "avx512": "AVX512_BF16", "amx": "AMX"}


def hold_to(isa: str, processor: Processor) -> None:
    """Holds all processes that start from now on to an instruction set and older ones.

    Raises:
        SystemExit: The processor lacks it.
    """
    if isa not in processor.instruction_sets:
        raise SystemExit(f"--isa: {isa} is none of the instruction sets of this processor, {processor}; choose another")
    flags = (os.environ.get("XLA_FLAGS", ""), f"--xla_cpu_max_isa={XLA_ISAS[isa]}")
    os.environ |= {**ISAS[isa], "XLA_FLAGS": " ".join(filter(None, flags))}


def ours(backend: str, without: str = "") -> Contender:
    """Our step on a backend, without a group of its kernels."""
    command = [sys.executable, str(FOLDER / "training" / "ours.py"), backend, *KERNELS.get(without, ())]
    return Contender(f"ours {backend}{without and f' without {without}'}", command, MALLOC_ENVIRONMENT)


def peers() -> list[Contender]:
    """KerasHub and Hugging Face, where they are installed."""
    folder = FOLDER / "training"
    kerashub = [
        Contender(f"kerashub {backend} {mode}", [PEERS, str(folder / "kerashub.py"), backend, mode])
        for backend, mode in (("tensorflow", "xla"), ("tensorflow", "graph"), ("jax", "xla"))
    ]
    torch = [Contender(f"pytorch {mode}", [PEERS, str(folder / "pytorch.py"), mode]) for mode in TORCH_MODES]
    return kerashub + torch if (ROOT / ".peers").is_dir() else []


def contenders(names: list[str]) -> list[Contender]:
    """The contenders of such names, ours first."""
    everyone = [ours("tensorflow"), ours("jax"), *peers()]
    if not names:
        # On CPUs it is the same as `compiled`.
        return [one for one in everyone if one.name != "pytorch flash"]
    return [one for one in everyone if any(one.name.startswith(name) for name in names)]


def calibrate(setting: Mapping[str, Any], ours: Sequence[Contender]) -> None:
    """Prints the backend that `auto` chooses for such a training, and its rate over that of the better one.

    Args:
        setting: Numbers of the step.
        ours: Our contenders, measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Programs are not kept: each measurement compiles its own.
        options = CompileCacheOptions(Path(folder), 0)
        calibration = Calibration(
            architecture_of(setting), options_of(setting), "benchmark", options, "", Processor.of_this_machine()
        )
        with patch.dict(os.environ, MALLOC_ENVIRONMENT):
            choice = calibration.choose(lambda _: None, lambda: None, lambda text: print(f"auto: {text}"))
    rates = {one.name.removeprefix("ours "): one.rate for one in ours}
    ratio = rates[choice.backend] / max(rates.values())
    print(f"\nauto: {choice.backend} by its calibration ({choice.speeds}), {ratio:.2f} of the better one", flush=True)


def main() -> None:
    """Runs the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: small and 124M")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contenders whose name begins so")
    parser.add_argument("--kernels", action="store_true", help="compare ours with itself without some kernels")
    parser.add_argument("--auto", action="store_true", help="also calibrate, as `auto` does; on CPUs")
    parser.add_argument(
        "--isa",
        choices=ISAS,
        help="hold all contenders to an instruction set and older ones; avx512: with its VNNI and BF16",
    )
    arguments = parser.parse_args()
    if arguments.auto and (arguments.kernels or not {*OURS} <= {one.name for one in contenders(arguments.only)}):
        parser.error("--auto compares both of our backends: leave --only and --kernels out, or add --only ours")
    processor = Processor.of_this_machine()
    if arguments.isa:
        hold_to(arguments.isa, processor)
    print(f"{processor}{f', held to {arguments.isa}' if arguments.isa else ''}", flush=True)
    for size in arguments.size or ("small", "124M"):
        setting = SIZES[size]
        for precision in arguments.precision or ["float32", "bfloat16"]:
            print(f"\n{size}, batch {setting['batch']} x {setting['length']}, {precision}\n", flush=True)
            steps = STEPS_A_TURN[size]
            tokens = setting["batch"] * setting["length"]
            rows = [contenders(arguments.only)]
            if arguments.kernels:
                rows = [
                    [ours(backend), *(ours(backend, name) for name in KERNELS)] for backend in ("tensorflow", "jax")
                ]
            for row in rows:
                flops = flops_per_token(architecture_of(setting), setting["length"])
                compare(row, {**setting, "precision": precision}, arguments.rounds, steps, tokens, flops)
                if arguments.auto:
                    calibrate({**setting, "precision": precision}, [one for one in row if one.name in OURS])


if __name__ == "__main__":
    main()
