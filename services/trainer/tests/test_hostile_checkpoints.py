"""Checkpoints that are damaged, or made to do harm, are refused by an error that names the file or the tensor."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from trainer_support import computations
from trainer_support.data import (
    END_TOKEN_ID,
    VOCABULARY_SIZE,
    make_checkpoint,
    random_weights,
    small_architecture,
    write_pair,
)
from trainer_support.sources import openai_variables, write_hparams, write_huggingface_files, write_shards

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import DataLoss
from gpt2_trainer.configuration.architecture import LayerSizes
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState, read_checkpoint, write_checkpoint

IMPORT = ("gpt2_trainer.jobs.import_checkpoint", "import_checkpoint", "ImportCheckpointRequest")
ARCHITECTURE = small_architecture()
WEIGHTS = random_weights(ARCHITECTURE)
MANY_BRACKETS = "[" * 100_000


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def refusal(tensorflow_process, tmp_path, source):
    """Imports the source, which must be refused and leave no checkpoint. Returns the message."""

    def run():
        request = pb.ImportCheckpointRequest(uri=source.as_uri()).SerializeToString()
        result = tensorflow_process(computations.run_job, *IMPORT, request, str(tmp_path), "import")
        assert result["error"]["type"] == "InvalidRequest", result
        assert not list(tmp_path.glob("artifacts/**/checkpoint/manifest.json"))
        return result["error"]["message"]

    return run


@pytest.fixture
def openai(tensorflow_process, source):
    """A source in OpenAI's format, with some variables exchanged."""

    def write(**changes):
        variables = openai_variables(WEIGHTS) | {f"model/{name}": value for name, value in changes.items()}
        tensorflow_process(computations.write_openai_checkpoint, str(source), variables)
        write_hparams(source)

    return write


SIZES = [
    ("n_layer", "two", "n_layer is 'two', no whole number"),
    ("n_layer", "2", "n_layer is '2', no whole number"),
    ("n_layer", 2.5, "n_layer is 2.5, no whole number"),
    ("n_layer", True, "n_layer is True, no whole number"),
    ("n_layer", None, "n_layer is None, no whole number"),
    ("n_layer", float("inf"), "n_layer is inf, no whole number"),
    ("n_layer", -2, "n_layer must be 1 to "),
    ("n_layer", 10**12, "n_layer must be 1 to "),
    ("n_embd", 2**62, "n_embd must be 1 to "),
    ("n_embd", [16], "n_embd is [16], no whole number"),
    ("n_head", 0, "n_head must be 1 to "),
]


@pytest.mark.parametrize(("name", "value", "part"), [*SIZES, ("n_vocab", 10**15, "vocabulary_size must be 1 to ")])
def test_sizes_that_cannot_be_are_named_in_hparams(refusal, source, name, value, part):
    write_hparams(source, **{name: value})
    message = refusal()
    assert "hparams.json" in message
    assert part in message


@pytest.mark.parametrize(("name", "value", "part"), [*SIZES, ("vocab_size", -1, "vocabulary_size must be 1 to ")])
def test_sizes_that_cannot_be_are_named_in_a_config(refusal, source, name, value, part):
    write_huggingface_files(source, WEIGHTS, **{name: value})
    message = refusal()
    assert "config.json" in message
    assert part in message


@pytest.mark.parametrize("name", ["hparams.json", "config.json", "model.safetensors.index.json", "encoder.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"\xff\xfe{}", b"{" * 3, MANY_BRACKETS.encode()])
def test_what_is_no_json_object_is_named(refusal, source, name, content):
    write_shards(source, WEIGHTS)
    write_pair(source)
    (source / name).write_bytes(content)
    assert name in refusal()


@pytest.mark.parametrize("missing", ["encoder.json", "vocab.bpe"])
def test_half_a_tokenizer_is_not_taken_for_none(refusal, source, missing):
    write_huggingface_files(source, WEIGHTS)
    write_pair(source)
    (source / missing).unlink()
    assert f"{missing} is missing" in refusal()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"<extra>": VOCABULARY_SIZE},
            f"has {VOCABULARY_SIZE + 1} tokens and the tensor wte.weight {VOCABULARY_SIZE} rows",
        ),
        ({"extra": VOCABULARY_SIZE}, "no merge makes 1 of its tokens, such as 'extra'"),
        ({"extra": END_TOKEN_ID}, "encoder.json and vocab.bpe: the ids of its"),
        ({"extra": 10**9}, "encoder.json and vocab.bpe: the ids of its"),
        ({"extra": -1}, "encoder.json and vocab.bpe: the ids of its"),
        ({"extra": "7"}, "encoder.json and vocab.bpe: the tokens are not a JSON object that gives each its id"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(refusal, source, change, part):
    write_huggingface_files(source, WEIGHTS)
    write_pair(source)
    vocabulary = json.loads((source / "encoder.json").read_text())
    (source / "encoder.json").write_text(json.dumps(vocabulary | change))
    assert part in refusal()


def with_header(path, change):
    """Writes a safetensors file anew with another header; `change` gets it as a dict, or gives bytes or a length."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(changed or header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_header_longer_than_the_file_is_refused(refusal, source):
    write_huggingface_files(source, WEIGHTS)
    path = source / "model.safetensors"
    content = path.read_bytes()
    for length in (2**60, 2**63, 2**64 - 1, len(content), 0):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        assert "model.safetensors cannot be read" in refusal()
    for size in (0, 4, 8, 100, len(content) - 1):
        path.write_bytes(content[:size])
        assert "model.safetensors cannot be read" in refusal()


def same_place_twice(header):
    header["h.0.ln_1.bias"]["data_offsets"] = header["h.0.ln_1.weight"]["data_offsets"]


def out_of_the_file(header):
    header["wte.weight"]["data_offsets"] = [10**9, 10**9 + 4 * VOCABULARY_SIZE * 16]


def backwards(header):
    header["wte.weight"]["data_offsets"] = header["wte.weight"]["data_offsets"][::-1]


def below_zero(header):
    header["wte.weight"]["data_offsets"][0] = -4


def overflowing(header):
    header["wte.weight"]["shape"] = [2**40, 2**40]


def of_unknown_type(header):
    header["wte.weight"]["dtype"] = "F31"


def of_another_type(header):
    header["wte.weight"]["dtype"] = "I32"


def of_narrower_type(header):
    header["wte.weight"]["dtype"] = "F16"


def named_twice(header):
    other = json.dumps(header["h.0.ln_1.weight"])
    return json.dumps(header).encode()[:-1] + f', "h.0.ln_1.bias": {other}}}'.encode()


def nested(_header):
    return MANY_BRACKETS.encode()


HEADERS = [
    *(same_place_twice, out_of_the_file, backwards, below_zero, overflowing, of_unknown_type, of_narrower_type, nested),
    named_twice,
]


@pytest.mark.parametrize("change", HEADERS)
def test_a_header_that_lies_is_refused(refusal, source, change):
    write_huggingface_files(source, WEIGHTS)
    with_header(source / "model.safetensors", change)
    assert "model.safetensors cannot be read" in refusal()


def test_a_tensor_that_is_no_floating_point_is_named(refusal, source):
    write_huggingface_files(source, WEIGHTS)
    with_header(source / "model.safetensors", of_another_type)
    assert "the tensor wte.weight is of type I32" in refusal()


def test_every_flipped_bit_of_a_header_is_refused_or_harmless(tensorflow_process, source):
    write_huggingface_files(source, WEIGHTS)
    outcomes = tensorflow_process(computations.reads_of_flipped, str(source), "model.safetensors", 8 + 400)
    assert set(outcomes) <= {"refused", "the same"}
    assert outcomes.count("refused") > 200


def test_every_flipped_byte_of_a_tensorflow_index_is_refused_or_harmless(tensorflow_process, source, openai):
    openai()
    outcomes = tensorflow_process(computations.reads_of_flipped, str(source), "model.ckpt.index", 10**9)
    assert set(outcomes) <= {"refused", "the same"}
    assert outcomes.count("refused") > len(outcomes) / 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"model_checkpoint_path: 7", b'model_checkpoint_path: "x'])
def test_a_broken_checkpoint_file_is_named(refusal, source, openai, content):
    openai()
    (source / "checkpoint").write_bytes(content)
    assert "`checkpoint`" in refusal()


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_checkpoint_file_does_not_lead_out_of_its_folder(refusal, source, openai, tmp_path, kind):
    openai()
    (tmp_path / "secret").mkdir()
    for path in source.glob("model.ckpt.*"):
        path.rename(tmp_path / "secret" / path.name)
    path = {"absolute": tmp_path / "secret/model.ckpt", "relative": "../secret/model.ckpt"}[kind]
    (source / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')
    assert "`checkpoint`" in refusal()


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (np.zeros(16, np.int32), "the tensor model/ln_f/b is of type int32, not floating point"),
        (np.full(16, "x"), "the tensor model/ln_f/b is of type string, not floating point"),
        (np.array([np.nan] + [0] * 15, np.float32), "the tensor model/ln_f/b holds a number that is not finite"),
    ],
)
def test_a_variable_of_no_use_is_named(refusal, openai, value, part):
    openai(**{"ln_f/b": value})
    assert part in refusal()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(refusal, source, value):
    bias = WEIGHTS["h.1.mlp.c_fc.bias"].copy()
    bias[3] = value
    write_huggingface_files(source, WEIGHTS, extra={"h.1.mlp.c_fc.bias": bias})
    assert "the tensor h.1.mlp.c_fc.bias holds a number that is not finite" in refusal()


def test_numbers_too_great_for_float32_are_named(refusal, source):
    bias = WEIGHTS["h.1.mlp.c_fc.bias"].astype(np.float64)
    bias[3] = 1e300
    write_huggingface_files(source, WEIGHTS, extra={"h.1.mlp.c_fc.bias": bias})
    assert "the tensor h.1.mlp.c_fc.bias holds a number that is not finite" in refusal()


def test_a_tensor_there_twice_is_named(refusal, source):
    write_huggingface_files(source, WEIGHTS, extra={"transformer.ln_f.bias": WEIGHTS["ln_f.bias"]})
    assert "the tensor ln_f.bias is there twice" in refusal()


def test_a_tensor_in_two_files_is_named(refusal, source):
    shards = write_shards(source, WEIGHTS)
    tensors = load_file(source / shards[0])
    save_file(load_file(source / shards[1]) | {next(iter(tensors)): next(iter(tensors.values()))}, source / shards[1])
    assert "is there twice" in refusal()


def test_the_damaged_one_of_several_files_is_named(refusal, source):
    shards = write_shards(source, WEIGHTS)
    path = source / shards[1]
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal()
    assert f"{path} cannot be read" in message
    assert shards[0] not in message


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (np.zeros(16, np.int32), "the weight ln_f.bias is of type int32 instead of float32"),
        (np.zeros(16, np.float16), "the weight ln_f.bias is of type float16 instead of float32"),
        (np.full(16, np.nan, np.float32), "the weight ln_f.bias holds a number that is not finite"),
    ],
)
def test_our_own_checkpoint_is_read_no_less_strictly(refusal, source, value, part):
    make_checkpoint(source, ARCHITECTURE, WEIGHTS)
    save_file(WEIGHTS | {"ln_f.bias": value}, source / "weights.safetensors")
    assert part in refusal()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "config.json", "state.json"])
@pytest.mark.parametrize("content", [b"", b"[]", MANY_BRACKETS.encode(), struct.pack("<Q", 2**60) + b"{}"])
def test_a_damaged_file_of_a_checkpoint_is_named(tmp_path, name, content):
    slots = {f"first_moment/{key}": value for key, value in WEIGHTS.items()}
    checkpoint = Checkpoint(architecture=ARCHITECTURE, weights=WEIGHTS, slots=slots, state=TrainingState())
    write_checkpoint(tmp_path, checkpoint, None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataLoss, match=name):
        read_checkpoint(tmp_path, with_optimizer=True)


def test_sizes_have_an_upper_bound():
    assert LayerSizes(n_layer=48, n_head=25, n_embd=1600, n_ctx=1024).problems() == []
    fields = {name for name, _ in LayerSizes(n_layer=2**31 - 1, n_head=1, n_embd=2**31 - 1, n_ctx=2**31 - 1).problems()}
    assert fields == {"n_layer", "n_embd", "n_ctx"}
