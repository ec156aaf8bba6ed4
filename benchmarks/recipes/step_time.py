"""Seconds of a step with AdamW and with Muon, in turns in one run."""

import json
import statistics
import sys

from turns import FOLDER, Contender

from gpt2_trainer.memory import MALLOC_ENVIRONMENT

SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "vocabulary": 50257, "length": 256}
MICRO_BATCH = 4
USUAL_TOKENS = 1 << 19
"""Tokens in an update of GPT-2 124M: half a million."""
_OPTIMIZERS = {"AdamW": {"optimizer": "adamw"}, "Muon": {"optimizer": "muon", "momentum": 0.95}}


def compare_step_times(backend: str, precision: str, tokens: int, rounds: int) -> None:
    """Prints the seconds of a step, and what they mean for a step of half a million tokens.

    Muon's products take as long however many tokens a step has. So a small batch measures the difference, and with it
    the ratio at any other size follows: only the seconds of gradients grow with the tokens.

    Args:
        backend: Backend of Keras.
        precision: Of both.
        tokens: Tokens of a step, in micro-batches of 1,024.
        rounds: Turns of each.
    """
    command = [sys.executable, str(FOLDER / "training" / "ours.py"), backend]
    accumulated = max(1, tokens // (MICRO_BATCH * SIZES["length"]))
    tokens = accumulated * MICRO_BATCH * SIZES["length"]
    setting = {**SIZES, "batch": accumulated * MICRO_BATCH, "accumulated": accumulated, "precision": precision}
    running: list[Contender] = []
    try:
        for name, options in _OPTIMIZERS.items():
            contender = Contender(name, command, MALLOC_ENVIRONMENT)
            contender.start({**setting, **options})
            running.append(contender)
        for _ in range(rounds):
            for contender in running:
                contender.turn(1, tokens)
    finally:
        for contender in running:
            contender.stop()
    seconds = [[tokens / rate for rate in contender.rates] for contender in running]
    adamw, muon = (statistics.median(values) for values in seconds)
    usual = USUAL_TOKENS / tokens * adamw
    print(f"124M, {backend}, {precision}, {tokens:,} tokens a step, {rounds} turns each: {json.dumps(seconds)}")
    print("\n| tokens a step | AdamW, s | Muon, s | ratio |\n|--:|--:|--:|--:|")
    print(f"| {tokens:,} (measured) | {adamw:.2f} | {muon:.2f} | {muon / adamw:.3f} |")
    more = usual + muon - adamw
    print(f"| {USUAL_TOKENS:,} (calculated) | {usual:.0f} | {more:.0f} | {more / usual:.3f} |")
