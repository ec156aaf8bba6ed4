"""The model that MLflow serves: text in, text out. MLflow keeps this file with the model and runs it to load it.

It stands alone: it imports MLflow, TensorFlow, tokenizers and numpy, and nothing of the pipeline, so that a model loads
wherever those are. Nothing is pickled. Running it registers the model with MLflow; nothing else imports it.
"""

import codecs
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # it has no stubs
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

COLUMN = "prompt"
"""Column of a data frame with the prompts."""

_UNNAMED, _SECOND_UNNAMED = 0, 1
_MAX_BATCH = 64
_MAX_STOPS = 16
_SEND = f"send a list of texts, or a data frame with the texts in the column `{COLUMN}`"


@dataclass(frozen=True, slots=True)
class Number:
    """A parameter that is a number.

    Args:
        default: Value where none is sent.
        minimum: Smallest value.
        maximum: Largest value.
        exclusive_minimum: Whether the minimum itself is refused.
    """

    default: int | float
    minimum: int | float
    maximum: int | float
    exclusive_minimum: bool = False

    def check(self, name: str, value: Any) -> int | float:
        """The value as an int or float of Python. Raises MlflowException."""
        whole = isinstance(self.default, int)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.minimum <= value <= self.maximum
        if not fits or (self.exclusive_minimum and value == self.minimum):
            found = "null" if value is None else reprlib.repr(value)
            style = "," if whole else "g"
            low = f"{'over' if self.exclusive_minimum else 'from'} {self.minimum:{style}}"
            kind = "a whole number" if whole else "a number"
            refuse(
                f"{name}: must be {kind} {low} to {self.maximum:{style}}, not {found}; leave it out for {self.default}"
            )
        return int(value) if whole else float(value)


NUMBERS: Mapping[str, Number] = {
    "temperature": Number(1.0, 0.0, float(np.finfo(np.float32).max)),
    "top_k": Number(40, 0, 2**31 - 1),
    "top_p": Number(1.0, 0.0, 1.0, exclusive_minimum=True),
    "max_tokens": Number(128, 1, 1_000_000),
    "seed": Number(0, -(2**63), 2**63 - 1),
    "repetition_penalty": Number(1.0, 0.01, 100.0),
    "no_repeat_ngram_size": Number(0, 0, 2**31 - 1),
}
"""Parameters besides `stop`. The trainer's Generate has the same defaults and ranges."""


class Gpt2TextModel(PythonModel):  # type: ignore[misc]  # MLflow's base class is untyped
    """Continues prompts.

    Prompts that have as many tokens as each other run as one batch. A text depends on its prompt and the parameters
    alone: it is sample 0 of the trainer's Generate with the same prompt and seed.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the weights and the tokenizer."""
        import tensorflow as tf
        from tokenizers import Tokenizer

        paths = context.artifacts
        config = json.loads(Path(paths["config"]).read_text(encoding="utf-8"))
        self._end: int = config["eos_token_id"]
        self._tokenizer = Tokenizer.from_file(paths["tokenizer"])
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        characters = _byte_of_character()
        self._bytes = {number: _token_bytes(token, characters) for token, number in vocabulary.items()}
        # Kept whole: the functions of a SavedModel hold its variables only weakly.
        self._loaded = tf.saved_model.load(paths["saved_model"])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - part of MLflow's interface
        model_input: Any,
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Continues each prompt.

        Args:
            context: Unused; everything was loaded before.
            model_input: A text, a list of texts, a data frame with the column `prompt` (others are ignored) or with one
                unnamed column, or a dict with a text or a list of texts under `prompt`. An empty text asks for a
                document from its beginning.
            params: temperature (0: always the likeliest token), top_k (0: all), top_p, max_tokens, seed,
                repetition_penalty (1: none), no_repeat_ngram_size (0: none), and stop, a list of texts before the first
                of which the answer ends.

        Returns:
            What follows each prompt, without it, up to the end of the document, a stop text or max_tokens.

        Raises:
            MlflowException: A prompt is no text, or a parameter is out of its range (INVALID_PARAMETER_VALUE).
        """
        numbers, stops = _parameters(params or {})
        prompts = [self._encode(prompt) for prompt in _texts(model_input)]
        texts = [""] * len(prompts)
        for batch in _batches(prompts):
            for number, made in zip(batch, self._continue([prompts[n] for n in batch], numbers), strict=True):
                texts[number] = self._text(made, stops)
        return texts

    def _encode(self, prompt: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        return token_ids or [self._end]

    def _continue(self, token_ids: list[list[int]], numbers: Mapping[str, int | float]) -> list[list[int]]:
        """Token ids that follow prompts of one length, each up to the end token."""
        import tensorflow as tf

        penalties = {name: numbers[name] for name in ("repetition_penalty", "no_repeat_ngram_size")}
        changed = [name for name, value in penalties.items() if value != NUMBERS[name].default]
        signature = "generate_samples" if changed else "generate"
        if signature not in self._loaded.signatures:
            refuse(
                f"{changed[0]}: this model was exported before there was this parameter; export and register it again"
            )
        generate = self._loaded.signatures[signature]
        values = {"token_ids": token_ids, **numbers, "samples": [0] * len(token_ids)}
        inputs = {
            name: tf.constant(values[name], spec.dtype) for name, spec in generate.structured_input_signature[1].items()
        }
        made = generate(**inputs)
        rows = zip(made["token_ids"].numpy().tolist(), made["lengths"].numpy().tolist(), strict=True)
        return [row[:length] for row, length in rows]

    def _text(self, token_ids: Iterable[int], stops: Sequence[str]) -> str:
        """Text of tokens up to whichever stop is complete first; of an unfinished character at the end, nothing."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, reach = "", max(map(len, stops), default=0)
        for token_id in token_ids:
            start = max(0, len(text) - reach)
            text += decoder.decode(self._bytes.get(token_id, b""))
            if places := [place for stop in stops if (place := text.find(stop, start)) >= 0]:
                return text[: min(places)]
        return text


def refuse(message: str) -> NoReturn:
    """Raises what MLflow's server answers with status 400 and the message alone."""
    raise MlflowException.invalid_parameter_value(message)


def _texts(model_input: Any) -> list[str]:
    return [_checked_text(row, value) for row, value in enumerate(_values(model_input))]


def _values(model_input: Any) -> list[Any]:
    """The prompts of an input in any form that MLflow hands over, unchecked."""
    if isinstance(model_input, pd.DataFrame):
        return _column(model_input)
    if isinstance(model_input, Mapping):
        if COLUMN not in model_input:
            refuse(f"{COLUMN}: the input has no such key; {_SEND}")
        return _values(model_input[COLUMN])
    if isinstance(model_input, list | tuple | np.ndarray | pd.Series):
        return list(model_input)
    return [model_input]


def _column(table: pd.DataFrame) -> list[Any]:
    if COLUMN in table.columns:
        values = list(table[COLUMN])
    elif _UNNAMED in table.columns and _SECOND_UNNAMED not in table.columns:
        values = list(table[_UNNAMED])
    elif _UNNAMED in table.columns:
        refuse(f"{COLUMN}: the input has several columns, and none of this name; {_SEND}")
    else:
        refuse(f"{COLUMN}: the input has no column of this name, or no row; {_SEND}")
    # MLflow makes one cell of the list in a dict.
    return list(values[0]) if len(values) == 1 and isinstance(values[0], list | np.ndarray) else values


def _checked_text(row: int, value: Any) -> str:
    if not isinstance(value, str):
        is_null = value is None or (pd.api.types.is_scalar(value) and pd.isna(value))
        found = "null" if is_null else f"{reprlib.repr(value)} ({type(value).__name__}), no text"
        refuse(f'{COLUMN}: row {row}, counted from 0, is {found}; send a text, "" for the beginning of a document')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = f"half a surrogate pair, U+{ord(value[error.start]):04X}, at character {error.start}"
        refuse(f"{COLUMN}: row {row}, counted from 0, has {place}, which no text has; remove it")
    return str(value)


def _parameters(params: Mapping[str, Any]) -> tuple[dict[str, int | float], list[str]]:
    """Numbers by name, with their defaults, and stops."""
    if unknown := sorted(set(params) - {*NUMBERS, "stop"}):
        refuse(f"params: {', '.join(unknown)}: no such parameter; there are {', '.join([*NUMBERS, 'stop'])}")
    numbers = {name: kind.check(name, params.get(name, kind.default)) for name, kind in NUMBERS.items()}
    stops = params.get("stop", ())
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list | tuple | np.ndarray) or not all(isinstance(stop, str) and stop for stop in stops):
        refuse(f"stop: must be a list of texts, none of them empty, not {reprlib.repr(stops)}")
    if len(stops) > _MAX_STOPS:
        refuse(f"stop: must be at most {_MAX_STOPS} texts, not {len(stops):,}")
    return numbers, list(stops)


def _batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the prompts that run together: those with the same number of tokens."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    step = _MAX_BATCH
    return [group[start : start + step] for group in by_length.values() for start in range(0, len(group), step)]


def _byte_of_character() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabularies: printable ones for themselves, others shifted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _token_bytes(token: str, characters: Mapping[str, int]) -> bytes:
    # A special token is text itself.
    is_text = any(character not in characters for character in token)
    return token.encode() if is_text else bytes(characters[character] for character in token)


mlflow.models.set_model(Gpt2TextModel())
