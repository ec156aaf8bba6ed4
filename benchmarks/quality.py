"""What recipes and transplants buy: validation loss and tokens beside those of the defaults, with several seeds.

    .venv/bin/python benchmarks/quality.py --out FOLDER [--tokens N]
        [--table scratch|small_data|parts|transplant|demo|step_time|optimizers]

Every training is the trainer's own job on one fixed split of real text, runs to its end, and is kept in `--out` by its
settings: what was interrupted continues where it stopped. The learning rates of baseline and recipe are swept with one
seed; the best of each is trained with `--seeds` seeds, in turns. p is that of Welch's t-test. Each table of losses has
a plot in `--out`. Without --text the text is the documentation of Python and of the installed packages.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from recipes.contest import Contender, Contest, print_table
from recipes.corpora import Corpus, build_corpus, documentation_texts, texts_of_folder
from recipes.plots import draw_losses
from recipes.step_time import compare_step_times
from recipes.trainings import Result, Settings, Trainings

from gpt2_orchestration.demo.demo import MIN_BYTES, SPECIFICATION
from gpt2_orchestration.pipelines.specification import load_specification
from gpt2_trainer.configuration.recipes import COOLDOWN_PERCENT

SCRATCH_MODELS = {
    "4x256": {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_ctx": 256},
    "2x128": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_ctx": 256},
}
SCRATCH_VOCABULARY = 8192
SCRATCH_TOKENS_A_STEP = 8192
SMALL_DATA_MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_ctx": 128}
SMALL_DATA_VOCABULARY = 4096
DEMO_VOCABULARY = 4096
PARTS = {
    "weight_decay": 0.1,
    "weight_decay_schedule": "linear",
    "dropout": 0.1,
    "reshuffle_documents": False,
    "ema_decay": 0.0,
}
"""What differs from `small_data`, one option at a time."""
LEFT_OUT = ("parts", "transplant", "optimizers")
"""Tables that take long, or a text, and are made where they are asked for."""
SHARE_OF_TOKENS = 0.7
"""Tokens of the recipe from scratch, over those of the baseline whose final loss it is to reach."""
OPTIMIZER_MODELS = {
    "12x768": (
        {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024},
        {"batch_tokens": 65536, "micro_batch_size": 16},
    ),
    "2x64": ({"n_layer": 2, "n_head": 2, "n_embd": 64, "n_ctx": 64}, {"batch_tokens": 512}),
}
"""Sizes, and those of an update: the layers of GPT-2 124M, and a model to try the benchmark with."""
OPTIMIZERS = {
    "AdamW": {"optimizer": "adamw", "learning_rate": 0.001},
    "Muon": {"optimizer": "muon", "learning_rate": 0.01},
}
MEASUREMENT = {"sample_length": 1, "save_every": 1 << 30, "validation_sequences": 128}
"""No samples and checkpoints on the way, and twice the default's validation sequences."""
DEMO_BEFORE = {"steps": 400, "batch_size": 8, "learning_rate": 0.002}
"""The demo's configuration before this benchmark."""


def main() -> None:
    """Prints the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {
        "scratch": scratch,
        "small_data": small_data,
        "parts": parts,
        "transplant": transplant,
        "demo": demo,
        "step_time": step_time,
        "optimizers": optimizers,
    }
    parser.add_argument("--out", type=Path, required=True, help="folder of datasets, results and plots")
    parser.add_argument("--table", choices=tables, action="append", help=f"default: all but {', '.join(LEFT_OUT)}")
    parser.add_argument("--text", type=Path, help="folder of text files; JSON lines have a `text`")
    parser.add_argument("--megabytes", type=float, default=5, help="size of the documentation, without --text")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of a baseline's training from scratch")
    parser.add_argument(
        "--source-tokens", type=int, default=10_000_000, help="of the English model whose weights are transplanted"
    )
    parser.add_argument(
        "--source-text", type=Path, help="folder of that model's text; default: the documentation of --megabytes"
    )
    parser.add_argument(
        "--share", type=float, default=0.25, help="tokens of a training after a transplant, over those from scratch"
    )
    parser.add_argument("--epochs", type=int, default=4, help="over all of the small data, and twice as many over half")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.0005, 0.001, 0.002, 0.004, 0.008], help="of baselines"
    )
    parser.add_argument(
        "--recipe-rates", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="of the recipe from scratch"
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each recipe's best learning rate")
    parser.add_argument(
        "--scratch-model", choices=SCRATCH_MODELS, default="4x256", help="from scratch, and of transplants"
    )
    parser.add_argument("--model", choices=OPTIMIZER_MODELS, default="12x768", help="of the optimizers")
    parser.add_argument("--step-tokens", type=int, default=1024, help="of each step of `step_time`")
    parser.add_argument("--max-seconds", type=float, default=0, help="of each training of the optimizers; 0: no limit")
    parser.add_argument("--prepare", action="store_true", help="make the text's dataset, and train nothing")
    parser.add_argument("--backend", choices=["tensorflow", "jax"], default="jax", help="of the first two tables")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the same")
    arguments = parser.parse_args()
    # Artifacts have absolute URIs.
    arguments.out = arguments.out.absolute()
    if arguments.prepare:
        print(f"prepared {_corpus(arguments, SCRATCH_VOCABULARY).all}")
        return
    trainings = Trainings(arguments.out)
    for name in arguments.table or (name for name in tables if name not in LEFT_OUT):
        print(f"\n## {name}", flush=True)
        tables[name](arguments, trainings)


def scratch(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Tokens that a recipe takes to the final loss of AdamW with a cosine, and its loss with as many tokens."""
    corpus = _corpus(arguments, SCRATCH_VOCABULARY)
    steps = arguments.tokens // SCRATCH_TOKENS_A_STEP
    fixed = {"batch_tokens": SCRATCH_TOKENS_A_STEP, "log_every": 4, **MEASUREMENT, **_validated(steps)}
    fixed["precision"] = arguments.precision
    recipe = {**fixed, **_validated(round(steps * SHARE_OF_TOKENS)), "recipe": "scratch"}
    contest = Contest(trainings, SCRATCH_MODELS[arguments.scratch_model], arguments.backend, arguments.seeds, _final)
    results = contest.run(
        [
            Contender(name="defaults", dataset=corpus.all, config=fixed, variants=_rates(arguments.rates)),
            Contender(name="scratch", dataset=corpus.all, config=recipe, variants=_rates(arguments.recipe_rates)),
        ]
    )
    name = f"{arguments.scratch_model}-{corpus.name}"
    _show(
        results, _final, f"{arguments.scratch_model} from scratch, {corpus.name}", arguments.out / f"scratch-{name}.svg"
    )


def small_data(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Loss of the defaults on all of a small text, and of the recipe for small data on half of it."""
    corpus = _corpus(arguments, SMALL_DATA_VOCABULARY)
    fixed = _on_little_text(corpus, arguments)
    recipe = {**fixed, "recipe": "small_data"}
    contest = Contest(trainings, SMALL_DATA_MODEL, arguments.backend, arguments.seeds, _best)
    results = contest.run(
        [
            Contender(name="defaults, all of it", dataset=corpus.all, config=fixed, variants=_rates(arguments.rates)),
            Contender(name="small_data, half of it", dataset=corpus.half, config=recipe, variants=[{}]),
        ]
    )
    _show(results, _best, f"4 x 128 on little text, {corpus.name}", arguments.out / f"small-data-{corpus.name}.svg")


def parts(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Loss of the recipe for small data on half of a text, with each of its options changed."""
    corpus = _corpus(arguments, SMALL_DATA_VOCABULARY)
    recipe = {**_on_little_text(corpus, arguments), "recipe": "small_data"}
    contest = Contest(trainings, SMALL_DATA_MODEL, arguments.backend, arguments.seeds, _best)
    contenders = [
        Contender(name=name, dataset=corpus.half, config={**recipe, **changed}, variants=[{}])
        for name, changed in (
            ("small_data", {}),
            *((f"{option} {value}", {option: value}) for option, value in PARTS.items()),
        )
    ]
    _show(contest.run(contenders), _best, f"small_data, {corpus.name}", arguments.out / f"parts-{corpus.name}.svg")


def transplant(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Loss on the text from scratch, and with a share of the tokens from a model of English text.

    Both are trained with the recipe from scratch, and have the tokenizer of the text.
    """
    if not arguments.text:
        raise SystemExit("--table transplant: needs --text, a folder of text in another language than English")
    corpus = _corpus(arguments, SCRATCH_VOCABULARY)
    fixed = {"batch_tokens": SCRATCH_TOKENS_A_STEP, "log_every": 4, **MEASUREMENT, "precision": arguments.precision}
    fixed["recipe"] = "scratch"
    steps = arguments.tokens // SCRATCH_TOKENS_A_STEP
    source_steps = arguments.source_tokens // SCRATCH_TOKENS_A_STEP
    english = _of_folder_or_documentation(arguments.source_text, arguments, SCRATCH_VOCABULARY)
    source = Settings(
        recipe="source",
        dataset=english.all,
        model=SCRATCH_MODELS[arguments.scratch_model],
        config={**fixed, **_validated(source_steps)},
        seed=0,
        backend=arguments.backend,
    )
    checkpoint = trainings.transplant(source, corpus.tokenizer)
    contest = Contest(trainings, source.model, arguments.backend, arguments.seeds, _final)
    variants = _rates(arguments.recipe_rates)
    # `scratch` is for new models alone: for weights from a checkpoint its options are set by themselves.
    options = {**fixed, **_validated(round(steps * arguments.share)), "recipe": ""}
    options |= {"optimizer": "muon", "schedule": "wsd", "cooldown_steps": options["steps"] * COOLDOWN_PERCENT // 100}
    results = contest.run(
        [
            Contender(
                name="from scratch", dataset=corpus.all, config={**fixed, **_validated(steps)}, variants=variants
            ),
            Contender(
                name="transplant",
                dataset=corpus.all,
                config=options,
                variants=variants,
                checkpoint=checkpoint,
            ),
        ]
    )
    name = f"{arguments.scratch_model}-{corpus.name}"
    _show(results, _final, f"{name} from English", arguments.out / f"transplant-{name}.svg")


def demo(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Loss and seconds of `gpt2 demo`'s training, with the defaults and as its file has it."""
    train = load_specification(SPECIFICATION).requests["train_model"]
    corpus = _documentation(arguments.out, MIN_BYTES / 1e6, DEMO_VOCABULARY)
    now = json_format.MessageToDict(train.config, preserving_proto_field_name=True)
    model = json_format.MessageToDict(train.model, preserving_proto_field_name=True)
    measured = {"validate_every": 100, "sample_length": 1, "save_every": 1 << 30}
    contest = Contest(trainings, model, "tensorflow", arguments.seeds, _final)
    contenders = [
        Contender(name=name, dataset=corpus.all, config={**config, **measured, "sample_every": 0}, variants=[{}])
        for name, config in (("demo before", DEMO_BEFORE), ("demo", now))
    ]
    _show(contest.run(contenders), _final, "the demo", arguments.out / "demo.svg")


def step_time(arguments: argparse.Namespace, trainings: Trainings) -> None:  # noqa: ARG001
    """Seconds of a step of 124M, with as many turns as there are seeds."""
    compare_step_times(arguments.backend, arguments.precision, arguments.step_tokens, arguments.seeds)


def optimizers(arguments: argparse.Namespace, trainings: Trainings) -> None:
    """Losses of AdamW and of Muon over the same tokens, in bfloat16, in one training each.

    With a limit of time both keep the schedule of all tokens, and are compared as far as both came.
    """
    corpus = _corpus(arguments, SCRATCH_VOCABULARY)
    model, batch = OPTIMIZER_MODELS[arguments.model]
    steps = max(1, arguments.tokens // batch["batch_tokens"])
    fixed = {
        **batch,
        "precision": "bfloat16",
        "schedule": "wsd",
        "max_seconds": arguments.max_seconds,
        **MEASUREMENT,
        "steps": steps,
        "validate_every": max(1, steps // 16),
    }
    results = [
        trainings.run(
            Settings(
                recipe=name,
                dataset=corpus.all,
                model=model,
                config={**fixed, **config},
                seed=0,
                backend=arguments.backend,
            )
        )
        for name, config in OPTIMIZERS.items()
    ]
    print(f"\n| tokens | {' | '.join(OPTIMIZERS)} |\n|--:|{'--:|' * len(OPTIMIZERS)}")
    curves = [dict(zip(result.tokens, result.losses, strict=True)) for result in results]
    for tokens in sorted(set.intersection(*(set(curve) for curve in curves))):
        print(f"| {tokens:,} | {' | '.join(f'{curve[tokens]:.4f}' for curve in curves)} |", flush=True)
    for result in results:
        rate = result.tokens[-1] / result.seconds
        print(
            f"{result.recipe}: {result.tokens[-1]:,} tokens, {rate:,.0f} tokens/s, loss {result.final:.4f}", flush=True
        )


def _corpus(arguments: argparse.Namespace, vocabulary_size: int) -> Corpus:
    return _of_folder_or_documentation(arguments.text, arguments, vocabulary_size)


def _of_folder_or_documentation(folder: Path | None, arguments: argparse.Namespace, vocabulary_size: int) -> Corpus:
    if folder:
        return build_corpus(folder.name, texts_of_folder(folder), arguments.out, vocabulary_size)
    return _documentation(arguments.out, arguments.megabytes, vocabulary_size)


def _documentation(out: Path, megabytes: float, vocabulary_size: int) -> Corpus:
    return build_corpus(f"documentation-{megabytes:g}-MB", documentation_texts(megabytes), out, vocabulary_size)


def _on_little_text(corpus: Corpus, arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of so many epochs over all of a text."""
    steps = corpus.train_tokens * arguments.epochs // (32 * SMALL_DATA_MODEL["n_ctx"])
    return {"batch_size": 32, "log_every": 20, **MEASUREMENT, **_validated(steps), "precision": arguments.precision}


def _validated(steps: int) -> dict[str, int]:
    """A training of so many steps, with eight validations."""
    return {"steps": steps, "validate_every": max(1, -(-steps // 8))}


def _rates(rates: Sequence[float]) -> list[Mapping[str, float]]:
    return [{"learning_rate": rate} for rate in rates]


def _final(result: Result) -> float:
    return result.final


def _best(result: Result) -> float:
    return result.best


def _show(results: Sequence[Sequence[Result]], loss: Callable[[Result], float], title: str, plot: Path) -> None:
    print_table(results, loss)
    draw_losses(results, title, plot)


if __name__ == "__main__":
    main()
