"""Training speed: ours beside KerasHub's and Hugging Face's GPT-2, in one run.

    make setup peers
    .venv/bin/python benchmarks/train.py [--size small|124M] [--precision float32|bfloat16] [--rounds N]
    .venv/bin/python benchmarks/train.py --kernels      # ours beside itself without each group of kernels

Each contender runs in its own process with all cores and the same weights' sizes, batch and optimizer (AdamW with
clipping); they take turns. Without `make peers`, ours runs alone.
"""

import argparse
import sys

from turns import FOLDER, Contender, compare

from gpt2_trainer.memory import MALLOC_ENVIRONMENT

ROOT = FOLDER.parent
PEERS = str(ROOT / ".peers" / "bin" / "python")
SIZES = {
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_ctx": 128, "vocabulary": 8192, "batch": 8, "length": 128},
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "vocabulary": 50257, "batch": 4, "length": 256},
}
STEPS_A_TURN = {"small": 10, "124M": 1}
KERNELS = {
    "custom_gradients": ("layer_norm", "attention", "causal_attention"),
    "cross_entropy": ("token_losses", "mean_loss"),
    "between products": ("gelu",),
    "any": ("layer_norm", "gelu", "attention", "causal_attention", "matmul", "token_losses", "mean_loss"),
}
"""What each contender of `--kernels` computes as the reference does."""


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
    torch = [Contender(f"pytorch {mode}", [PEERS, str(folder / "pytorch.py"), mode]) for mode in ("eager", "compiled")]
    return kerashub + torch if (ROOT / ".peers").is_dir() else []


def contenders(names: list[str]) -> list[Contender]:
    """The contenders of such names, ours first."""
    everyone = [ours("tensorflow"), ours("jax"), *peers()]
    return [one for one in everyone if not names or any(one.name.startswith(name) for name in names)]


def main() -> None:
    """Runs the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: both")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contenders whose name begins so")
    parser.add_argument("--kernels", action="store_true", help="compare ours with itself without some kernels")
    arguments = parser.parse_args()
    for size in arguments.size or SIZES:
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
                compare(row, {**setting, "precision": precision}, arguments.rounds, steps, tokens)


if __name__ == "__main__":
    main()
