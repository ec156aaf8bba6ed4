"""EvaluateModel: its metrics are those of the reference, and bad input is named."""

import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from request_problems import request_problems
from trainer_support import computations, reference
from trainer_support.data import (
    END_TOKEN_ID,
    VOCABULARY_SIZE,
    make_checkpoint,
    make_dataset,
    make_tokenizer,
    random_weights,
    small_architecture,
    vocabulary,
)
from trainer_support.jobs import folder

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_common.vocabulary.byte_symbols import symbol_bytes
from gpt2_trainer.evaluation.lambada import batched, read_lambada
from gpt2_trainer.evaluation.sequences import EvaluationSequences, cut_spans
from gpt2_trainer.formats.tokenizer_files import token_bytes
from gpt2_trainer.generation.text import TextCodec
from gpt2_trainer.training.data import TokenStream
from gpt2_trainer.validation import evaluation_problems

EVALUATE = ("gpt2_trainer.jobs.evaluate", "evaluate_model", "EvaluateModelRequest")
ARCHITECTURE = small_architecture(n_layer=2, n_ctx=16)
TEXTS = ["She sells sea shells", "this is a", "Ein langer Satz, der nicht in den Kontext passt und doch zählt 🦜"]


def biased_weights():
    """Random weights that find the word ` a` likely everywhere."""
    weights = random_weights(ARCHITECTURE)
    wanted = 5 * weights["wte.weight"][vocabulary()["Ġa"]]
    weights["wte.weight"][vocabulary()["Ġa"]] = wanted
    return {**weights, "ln_f.bias": weights["ln_f.bias"] + 5 * wanted}


@pytest.fixture
def evaluate(backend, tmp_path):
    """Runs an evaluation of random weights and returns its outputs, or its error."""
    make_dataset(tmp_path / "dataset")
    make_checkpoint(tmp_path / "checkpoint", ARCHITECTURE, biased_weights())

    def run(**values):
        uris = {"checkpoint_uri": (tmp_path / "checkpoint").as_uri(), **values}
        request = pb.EvaluateModelRequest(**uris).SerializeToString()
        return backend(computations.run_job, *EVALUATE, request, str(tmp_path), "job", keras_backend=backend.name)

    return run


def write_texts(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path.as_uri()


def test_metrics_are_those_of_the_reference(evaluate, tmp_path):
    weights = biased_weights()
    stream = TokenStream(tmp_path / "dataset", "validation")
    tokens = stream.read(0, len(stream))
    preceded = np.concatenate([[END_TOKEN_ID], tokens])
    ends = [*(np.flatnonzero(tokens == END_TOKEN_ID) + 1).tolist(), len(tokens)]
    spans = list(cut_spans(ends, 16))
    total_loss = 0.0
    for start, stop in spans:
        probabilities = reference.softmax(reference.logits(weights, preceded[None, start:stop], 2, 2)[0])
        total_loss -= np.log(probabilities[np.arange(stop - start), tokens[start:stop]]).sum()
    expected = total_loss / len(tokens)
    names = {number: name for name, number in vocabulary().items()}
    text_bytes = sum(len(symbol_bytes(names[token])) for token in tokens.tolist() if token != END_TOKEN_ID)
    codec = TextCodec(tmp_path / "checkpoint" / "tokenizer", ARCHITECTURE.end_token_id)
    right, total = 0, 0.0
    for text in TEXTS:
        context, _, word = text.rpartition(" ")
        after = codec.encode_prompt(" " + word)
        token_ids = np.array([[*codec.encode_prompt(context), *after][-17:]])
        logits = reference.logits(weights, token_ids[:, :-1], 2, 2)[0, -len(after) :]
        right += int((logits.argmax(axis=-1) == after).all())
        probabilities = reference.softmax(logits)[np.arange(len(after)), after]
        total -= np.log(probabilities).sum()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    uri = write_texts(tmp_path / "last.jsonl", [lines[0], "", *lines[1:]])

    outputs = evaluate(dataset_uri=(tmp_path / "dataset").as_uri(), lambada_uri=uri, batch_size=2)

    metrics = json.loads((folder(outputs["evaluation"]) / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(expected, abs=1e-4)
    assert metrics["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert metrics["tokens"] == len(tokens)
    assert metrics["bits_per_byte"] == pytest.approx(total_loss / np.log(2) / text_bytes, rel=1e-4)
    assert metrics["lambada_examples"] == 3
    assert 0 < right < 3
    assert metrics["lambada_accuracy"] == right / 3
    assert metrics["lambada_perplexity"] == pytest.approx(np.exp(total / 3), rel=1e-4)
    assert {name: float(outputs["evaluation"][name]) for name in metrics} == pytest.approx(metrics)
    [dataset, words] = json.loads((folder(outputs["evaluation"]) / "evaluation.json").read_text())["measurements"]
    assert {**dataset.pop("metrics"), **words.pop("metrics")} == metrics
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert dataset == {
        "kind": "dataset",
        "uri": (tmp_path / "dataset").as_uri(),
        "digest": manifest["digest"],
        "context_length": 16,
        "sequences": len(spans),
    }
    assert words == {
        "kind": "lambada",
        "uri": uri,
        "digest": hashlib.sha256((tmp_path / "last.jsonl").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("lengths", "spans"),
    [
        ([4, 4], [(0, 8)]),
        ([4, 5], [(0, 4), (4, 9)]),
        ([3, 20, 2, 6], [(0, 3), (3, 11), (11, 19), (19, 25), (25, 31)]),
        ([8, 8], [(0, 8), (8, 16)]),
        ([16], [(0, 8), (8, 16)]),
        ([0], []),
    ],
)
def test_only_documents_longer_than_a_sequence_are_cut(lengths, spans):
    assert list(cut_spans(np.cumsum(lengths).tolist(), 8)) == spans


def test_sequences_have_each_token_as_target_once(tmp_path):
    end = 99
    tokens = np.array([1, 2, end, 3, 4, 5, end, 6, end, *range(10, 21), end, 7], np.uint16)
    for number, start in enumerate(range(0, len(tokens), 5)):
        np.save(tmp_path / f"validation-{number:05d}.npy", tokens[start : start + 5])
    stream = TokenStream(tmp_path, "validation")
    data = EvaluationSequences(stream, end, 6, None, 2)
    found, preceded, rows = [], [], []
    for inputs, targets, counted, count in data.batches():
        assert inputs.shape == targets.shape == counted.shape == (2, 6)
        assert not counted[count:].any()
        found += targets[counted].tolist()
        preceded += inputs[counted].tolist()
        rows += [row[mask].tolist() for row, mask in zip(targets[:count], counted, strict=False)]
    assert found == tokens.tolist()
    assert preceded == [end, *tokens[:-1].tolist()]
    assert rows == [[1, 2, end], [3, 4, 5, end, 6, end], list(range(10, 16)), [*range(16, 21), end], [7]]
    assert data.sequences == 5
    assert EvaluationSequences(stream, end, 6, 2, 2).sequences == 2


def test_bytes_of_tokens_are_those_of_their_text(tmp_path):
    lengths = token_bytes(make_tokenizer(tmp_path), VOCABULARY_SIZE + 2)
    names = vocabulary()
    assert [lengths[names[token]] for token in ("Ġthe", "th", "Ã¼", "Ċ")] == [4, 2, 2, 1]
    assert lengths[END_TOKEN_ID] == 0
    assert lengths[VOCABULARY_SIZE:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: Expecting"),
        ('{"text": 5}', 'line 2: must be a JSON object with a string "text"'),
        ("[]", 'line 2: must be a JSON object with a string "text"'),
        ('{"text": "alone"}', 'line 2: "text" must have at least two words'),
        ('{"text": "a bbbbbbbbbb"}', "line 2: the last word has 11 tokens, more than the model's context of 8"),
    ],
)
def test_a_line_that_is_no_text_is_named(line, text):
    with pytest.raises(InvalidRequest, match=re.escape(text)):
        read_lambada(['{"text": "a b"}', line], lambda text: list(text.encode()), 8, "lambada_uri")


def test_an_empty_file_is_refused():
    with pytest.raises(InvalidRequest, match="the file has no line"):
        read_lambada(["\n"], list, 8, "lambada_uri")


def test_batches_mark_only_the_targets_in_the_last_word():
    lines = [json.dumps({"text": text}) for text in ("aa b", "a" * 40 + " cc", "d ee")]
    words = read_lambada(lines, lambda text: list(text.encode()), 32, "lambada_uri")
    batches = list(batched(words, 2, 32))
    assert [count for _, _, count in batches] == [2, 1]
    marked = [
        bytes(row[1:][is_word].astype(np.uint8).tolist())
        for token_ids, places, count in batches
        for row, is_word in zip(token_ids[:count], places, strict=False)
    ]
    assert sorted(marked) == [b" b", b" cc", b" ee"]


def test_another_vocabulary_is_refused(jax_process, tmp_path):
    make_dataset(tmp_path / "dataset")
    larger = replace(ARCHITECTURE, vocabulary_size=VOCABULARY_SIZE + 1)
    make_checkpoint(tmp_path / "checkpoint", larger, random_weights(larger))
    uris = {name: (tmp_path / name.removesuffix("_uri")).as_uri() for name in ("checkpoint_uri", "dataset_uri")}
    request = pb.EvaluateModelRequest(**uris).SerializeToString()
    error = jax_process(computations.run_job, *EVALUATE, request, str(tmp_path), "job", keras_backend="jax")["error"]
    assert error["type"] == "FailedPrecondition"
    assert "another tokenizer" in error["message"]


def test_everything_wrong_with_a_request_is_said():
    request = pb.EvaluateModelRequest(batch_size=-1)
    assert sorted(
        name for name, _ in request_problems(request, evaluation_problems(request, lambda _field, uri: uri))
    ) == [
        "batch_size",
        "dataset_uri",
        "source",
    ]
