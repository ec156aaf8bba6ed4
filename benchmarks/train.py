"""Training speed: ours beside KerasHub's and Hugging Face's GPT-2, in one run.

    make setup peers
    .venv/bin/python benchmarks/train.py [--size small|124M] [--precision float32|bfloat16] [--rounds N]

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


def contenders(names: list[str]) -> list[Contender]:
    """The contenders, ours first."""
    folder = FOLDER / "training"
    ours = [
        Contender(f"ours {backend}", [sys.executable, str(folder / "ours.py"), backend], MALLOC_ENVIRONMENT)
        for backend in ("tensorflow", "jax")
    ]
    kerashub = [
        Contender(f"kerashub {backend} {mode}", [PEERS, str(folder / "kerashub.py"), backend, mode])
        for backend, mode in (("tensorflow", "xla"), ("tensorflow", "graph"), ("jax", "xla"))
    ]
    torch = [Contender(f"pytorch {mode}", [PEERS, str(folder / "pytorch.py"), mode]) for mode in ("eager", "compiled")]
    everyone = [*ours, *(kerashub + torch if (ROOT / ".peers").is_dir() else [])]
    return [one for one in everyone if not names or any(one.name.startswith(name) for name in names)]


def main() -> None:
    """Runs the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: both")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contenders whose name begins so")
    arguments = parser.parse_args()
    for size in arguments.size or SIZES:
        setting = SIZES[size]
        for precision in arguments.precision or ["float32", "bfloat16"]:
            print(f"\n{size}, batch {setting['batch']} x {setting['length']}, {precision}\n", flush=True)
            steps = STEPS_A_TURN[size]
            tokens = setting["batch"] * setting["length"]
            compare(contenders(arguments.only), {**setting, "precision": precision}, arguments.rounds, steps, tokens)


if __name__ == "__main__":
    main()
