"""Generation speed: ours beside KerasHub's and Hugging Face's GPT-2, in one run.

    make setup peers
    .venv/bin/python benchmarks/generate.py [--size 124M|small] [--batch 1] [--batch 8] [--rounds N]

Random weights, 64 prompt tokens, 128 new ones, top-k 40. Each contender runs in its own process with all
cores; they take turns. Without `make peers`, ours runs alone.
"""

import argparse
import sys

from turns import FOLDER, Contender, compare

ROOT = FOLDER.parent
PEERS = str(ROOT / ".peers" / "bin" / "python")
SIZES = {
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "vocabulary": 50257, "prompt": 64, "new": 128},
    "small": {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_ctx": 256, "vocabulary": 8192, "prompt": 64, "new": 128},
}


def contenders(names: list[str]) -> list[Contender]:
    """The contenders, ours first."""
    folder = FOLDER / "generation"
    ours = [
        Contender(f"ours {backend} {precision}", [sys.executable, str(folder / "ours.py"), backend, precision])
        for backend, precision in (("jax", "bfloat16"), ("jax", "float32"), ("tensorflow", "float32"))
    ]
    kerashub = [
        Contender(f"kerashub {backend} float32", [PEERS, str(folder / "kerashub.py"), backend])
        for backend in ("tensorflow", "jax")
    ]
    huggingface = [
        Contender(f"huggingface {precision}", [PEERS, str(folder / "huggingface.py"), precision])
        for precision in ("float32", "bfloat16")
    ]
    everyone = [*ours, *(kerashub + huggingface if (ROOT / ".peers").is_dir() else [])]
    return [one for one in everyone if not names or any(one.name.startswith(name) for name in names)]


def main() -> None:
    """Runs the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--batch", type=int, action="append", help="samples side by side; default: 1 and 8")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contenders whose name begins so")
    arguments = parser.parse_args()
    model = SIZES[arguments.size]
    for batch in arguments.batch or [1, 8]:
        print(f"\n{arguments.size}, {model['prompt']} + {model['new']} tokens, batch {batch}\n", flush=True)
        setting = {**model, "batch": batch}
        compare(contenders(arguments.only), setting, arguments.rounds, 1, batch * model["new"])


if __name__ == "__main__":
    main()
