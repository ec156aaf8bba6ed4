"""The model that MLflow serves: text in, text out. MLflow keeps this file with the model and runs it to load it.

It stands alone: it imports MLflow, TensorFlow, tokenizers and numpy, and nothing of the pipeline, so that a model loads
wherever those are. Nothing is pickled. Running it registers the model with MLflow; nothing else imports it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

DEFAULTS: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_k": 40,
    "top_p": 1.0,
    "max_tokens": 128,
    "seed": 0,
    "stop": (),
}
_LARGEST_BATCH = 64


class Gpt2TextModel(PythonModel):  # type: ignore[misc]  # MLflow's base class is untyped
    """Continues prompts.

    Prompts that have as many tokens as each other run as one batch; the seed is the same for all batches, so that the
    same input with the same seed gives the same texts.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the weights and the tokenizer."""
        import tensorflow as tf
        from tokenizers import Tokenizer

        paths = context.artifacts
        config = json.loads(Path(paths["config"]).read_text(encoding="utf-8"))
        self._end: int = config["eos_token_id"]
        self._tokenizer = Tokenizer.from_file(paths["tokenizer"])
        # Kept whole: the functions of a SavedModel hold its variables only weakly.
        self._loaded = tf.saved_model.load(paths["saved_model"])
        self._generate = self._loaded.signatures["generate"]

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - part of MLflow's interface
        model_input: Any,
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Continues each prompt.

        Args:
            context: Unused; everything was loaded before.
            model_input: A list of texts, a data frame with the column `prompt` (or one column), or a dict with a text
                or a list of texts under `prompt`. An empty text asks for a document from its beginning.
            params: temperature (0: always the likeliest token), top_k (0: all), top_p, max_tokens, seed, and stop, a
                list of texts before the first of which the answer ends.

        Returns:
            What follows each prompt, without it, up to the end of the document, a stop text or max_tokens.
        """
        chosen = _checked({**DEFAULTS, **(params or {})})
        prompts = [self._encode(prompt) for prompt in _prompts(model_input)]
        texts = [""] * len(prompts)
        for numbers in _batches(prompts):
            for number, text in zip(numbers, self._continue([prompts[n] for n in numbers], chosen), strict=True):
                texts[number] = _until(text, chosen["stop"])
        return texts

    def _encode(self, prompt: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        return token_ids or [self._end]

    def _continue(self, token_ids: list[list[int]], params: Mapping[str, Any]) -> list[str]:
        import tensorflow as tf

        made = self._generate(
            token_ids=tf.constant(token_ids, tf.int32),
            max_tokens=tf.constant(int(params["max_tokens"]), tf.int32),
            temperature=tf.constant(params["temperature"], tf.float32),
            top_k=tf.constant(int(params["top_k"]), tf.int32),
            top_p=tf.constant(params["top_p"], tf.float32),
            seed=tf.constant(int(params["seed"]), tf.int64),
        )
        rows = zip(made["token_ids"].numpy().tolist(), made["lengths"].numpy().tolist(), strict=True)
        return [self._tokenizer.decode(row[:length], skip_special_tokens=False) for row, length in rows]


def _prompts(model_input: Any) -> list[str]:
    if isinstance(model_input, str):
        return [model_input]
    if isinstance(model_input, Mapping) or hasattr(model_input, "columns"):
        return _prompts(_column(list(model_input), model_input))
    # MLflow makes one cell that holds a list of a dict that holds one.
    return [prompt for item in model_input for prompt in _prompts(item)]


def _column(names: Sequence[Any], table: Any) -> Any:
    if "prompt" in names:
        return table["prompt"]
    if len(names) == 1:
        return table[names[0]]
    raise ValueError(f"the input has the columns {', '.join(map(str, names))}; one named `prompt` is needed")


def _batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the prompts that run together: those with the same number of tokens."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    step = _LARGEST_BATCH
    return [group[start : start + step] for group in by_length.values() for start in range(0, len(group), step)]


def _until(text: str, stops: Sequence[str]) -> str:
    """A text up to whichever of the stops comes first."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _checked(params: dict[str, Any]) -> dict[str, Any]:
    stop = params["stop"]
    # A server hands over lists as arrays, and one text is meant as a list of it.
    params["stop"] = [stop] if isinstance(stop, str) else [str(text) for text in stop]
    unknown = sorted(set(params) - set(DEFAULTS))
    problems = [
        (not unknown, f"unknown parameters: {', '.join(unknown)}"),
        (params["temperature"] >= 0, "temperature must be 0 or more"),
        (params["top_k"] >= 0, "top_k must be 0 or more"),
        (0 < params["top_p"] <= 1, "top_p must be over 0 and at most 1"),
        (params["max_tokens"] >= 1, "max_tokens must be 1 or more"),
        (all(params["stop"]), "a stop text must not be empty"),
    ]
    for fine, message in problems:
        if not fine:
            raise ValueError(message)
    return params


mlflow.models.set_model(Gpt2TextModel())
