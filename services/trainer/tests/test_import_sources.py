"""What people have in place of a plain float32 folder: other float types, wrapped names, padding, other files."""

import itertools
import json
import re
import shutil
import struct

import fsspec
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from trainer_support import computations, jobs, reference
from trainer_support.data import (
    END_TOKEN_ID,
    VOCABULARY_SIZE,
    make_tokenizer,
    random_weights,
    small_architecture,
    write_pair,
)
from trainer_support.sources import write_hparams, write_huggingface_files, write_shards

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.errors import InvalidRequest
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint
from gpt2_trainer.validation import import_problems

EXPORT = ("gpt2_trainer.jobs.export", "export_model", "ExportModelRequest")
EVALUATE = ("gpt2_trainer.jobs.evaluate", "evaluate_model", "EvaluateModelRequest")
ARCHITECTURE = small_architecture()
WEIGHTS = random_weights(ARCHITECTURE)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (2, 16))
ROWS = 320
PADDED = {
    **WEIGHTS,
    "wte.weight": np.concatenate([WEIGHTS["wte.weight"], np.full((ROWS - VOCABULARY_SIZE, 16), 0.5, np.float32)]),
}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 249096\n"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def import_source(tmp_path, source):
    def run(uri=None, job_id="import"):
        request = pb.ImportCheckpointRequest(uri=uri or source.as_uri())
        return {item.name: item for item in import_checkpoint(request, jobs.make_context(tmp_path, job_id))}

    return run


@pytest.fixture
def refusal(import_source):
    def run(uri=None):
        with pytest.raises(InvalidRequest) as error:
            import_source(uri)
        return str(error.value)

    return run


def imported(outputs):
    return read_checkpoint(jobs.folder({"uri": outputs["checkpoint"].uri}), with_optimizer=False)


def assert_weights(outputs, weights):
    checkpoint = imported(outputs)
    assert checkpoint.architecture == ARCHITECTURE
    for name, value in weights.items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)


FLOAT_TYPES = {
    "bfloat16": [ml_dtypes.bfloat16],
    "float16": [np.float16],
    "mixed": [ml_dtypes.bfloat16, np.float16, np.float64, np.float32],
}


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", FLOAT_TYPES)
def test_bfloat16_and_other_float_types_are_read_exactly(kind, sharded, source, import_source):
    types = itertools.cycle(FLOAT_TYPES[kind])
    narrow = {name: value.astype(next(types)) for name, value in WEIGHTS.items()}
    (write_shards if sharded else write_huggingface_files)(source, narrow)
    assert_weights(import_source(), {name: value.astype(np.float32) for name, value in narrow.items()})


def test_export_of_bfloat16_weights_gives_the_logits_of_the_same_weights_in_float32(
    tensorflow_process, source, import_source, tmp_path
):
    narrow = {name: value.astype(ml_dtypes.bfloat16) for name, value in WEIGHTS.items()}
    write_huggingface_files(source, narrow)
    write_pair(source)
    request = pb.ExportModelRequest(checkpoint_uri=import_source()["checkpoint"].uri).SerializeToString()
    exported = jobs.folder(tensorflow_process(computations.run_job, *EXPORT, request, str(tmp_path), "export")["model"])
    weights = load_file(exported / "model.safetensors")
    wide = {name: value.astype(np.float32) for name, value in narrow.items()}
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}
    logits = tensorflow_process(computations.served_logits, str(exported / "saved_model"), TOKENS.astype(np.int32))
    np.testing.assert_allclose(logits, reference.logits(wide, TOKENS, 2, 2), atol=1e-4)


def write_typed(path, weights, name, kind, size):
    """Writes a safetensors file in which one tensor has a type that NumPy does not know."""
    header, data = {}, b""
    for key, value in weights.items():
        content = bytes(value.size * size) if key == name else value.tobytes()
        kind_there = kind if key == name else "F32"
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": kind_there, "shape": list(value.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_are_refused_by_name(kind, source, refusal):
    write_huggingface_files(source, WEIGHTS)
    write_typed(source / "model.safetensors", WEIGHTS, "h.0.attn.c_attn.weight", kind, 1)
    message = refusal()
    assert f"the tensor h.0.attn.c_attn.weight is of type {kind}" in message
    assert "save the model in float32, float16 or bfloat16" in message


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "_orig_mod.transformer.",
        "module.transformer.",
        "_orig_mod.module.transformer.",
        "module._orig_mod.transformer.",
        "_fsdp_wrapped_module.transformer.",
        "model.transformer.",
    ],
)
def test_names_of_wrapped_models_are_taken(prefix, source, import_source):
    extra = {f"{prefix.removesuffix('transformer.')}lm_head.weight": WEIGHTS["wte.weight"]}
    extra[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    write_huggingface_files(source, WEIGHTS, prefix, extra)
    assert_weights(import_source(), WEIGHTS)


def test_wrappers_within_a_name_are_taken(source, import_source):
    wrapped = {name.replace("h.0.", "h.0._orig_mod."): value for name, value in WEIGHTS.items()}
    write_huggingface_files(source, wrapped, "transformer.")
    assert_weights(import_source(), WEIGHTS)


def test_transposed_matrices_are_named(source, refusal):
    write_huggingface_files(
        source, WEIGHTS | {"h.0.attn.c_attn.weight": np.ascontiguousarray(WEIGHTS["h.0.attn.c_attn.weight"].T)}
    )
    assert "the tensor h.0.attn.c_attn.weight has shape [48, 16]" in (message := refusal())
    assert "transpose it" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "model-00002-of-00003.safetensors",
        "model.safetensors.index.json",
        "hparams.json",
        "checkpoint",
        "encoder.json",
        "vocab.bpe",
        "model.ckpt.index",
        "model.ckpt.data-00000-of-00001",
    ],
)
def test_a_git_lfs_pointer_is_named(name, source, refusal):
    if name == "model.safetensors":
        write_huggingface_files(source, WEIGHTS)
    else:
        write_shards(source, WEIGHTS)
    write_pair(source, ("vocab.json", "merges.txt"))
    (source / name).write_text(POINTER)
    assert f"{name} is a Git LFS pointer: fetch the file itself (git lfs pull)" in refusal()


FOREIGN = [
    ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, "is a LoRA adapter (PEFT)", "merge_and_unload"),
    ({"adapter_model.bin": "x"}, "is a LoRA adapter (PEFT)", "merge_and_unload"),
    ({"gpt2.Q4_K_M.gguf": "GGUF"}, "gpt2.Q4_K_M.gguf is a model of llama.cpp (GGUF)", "converted from"),
    ({"config.json": "{}", "tf_model.h5": "x"}, "tf_model.h5 is a file of TensorFlow weights (HDF5)", "from_tf=True"),
    ({"config.json": "{}", "flax_model.msgpack": "x"}, "flax_model.msgpack is a file of Flax weights", "from_flax"),
    ({"config.json": "{}", "model.weights.h5": "x", "task.json": "{}"}, "KerasHub preset", "export_to_transformers"),
    ({"decoder_model.onnx": "x"}, "decoder_model.onnx is a graph for inference", "exported from"),
    ({"saved_model.pb": "x"}, "saved_model.pb is a graph for inference", "exported from"),
    ({"ckpt.pt": "x"}, "ckpt.pt is a pickle file (nanoGPT's checkpoint)", "transpose"),
    ({"epoch=3.ckpt": "x"}, "epoch=3.ckpt is a pickle file", "save_pretrained"),
    ({"config.json": "{}", "pytorch_model.bin": "x"}, "pytorch_model.bin is a pickle file", "save_pretrained"),
    (
        {"config.json": "{}", "optimizer.pt": "x", "pytorch_model-00001-of-00002.bin": "x"},
        "pytorch_model-00001-of-00002.bin is a pickle file",
        "save_pretrained",
    ),
    ({"config.json": "{}", "weights-fp16.safetensors": "x"}, "a safetensors file of another name", "rename it"),
    (
        {"config.json": "{}", "model-00001-of-00002.safetensors": "x"},
        "without its model.safetensors.index.json",
        "fetch",
    ),
]


@pytest.mark.parametrize(("files", "kind", "advice"), FOREIGN, ids=["+".join(files) for files, _, _ in FOREIGN])
def test_another_kind_of_model_is_named_with_what_to_do(files, kind, advice, source, refusal):
    for name, content in files.items():
        (source / name).write_text(content)
    message = refusal()
    assert message.startswith("uri: ")
    assert kind in message
    assert advice in message


@pytest.mark.parametrize("name", ["model.gguf", "ckpt.pt", "pytorch_model.bin", "tf_model.h5"])
def test_a_file_in_place_of_a_folder_is_named(name, source, refusal):
    (source / name).write_text("x")
    message = refusal((source / name).as_uri())
    assert f"{name} is a file, not a folder: {name} is a" in message


def test_model_safetensors_in_place_of_its_folder_is_named(source, refusal):
    write_huggingface_files(source, WEIGHTS)
    assert f"name its folder, {source}, which holds config.json too" in refusal((source / "model.safetensors").as_uri())
    (source / "config.json").unlink()
    assert "put it into a folder with its config.json" in refusal((source / "model.safetensors").as_uri())
    (source / "model.safetensors").write_text(POINTER)
    assert "model.safetensors is a Git LFS pointer" in refusal((source / "model.safetensors").as_uri())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight", "is a LoRA adapter's: merge it into"),
        ("transformer.h.0.attn.c_attn.qweight", "is of quantised weights (GPTQ, AWQ, bitsandbytes): import the model"),
        ("transformer.h.0.attn.c_attn.weight.absmax", "is of quantised weights"),
    ],
)
def test_tensors_of_adapters_and_quantised_weights_are_named(name, part, source, refusal):
    tensors = {key: value for key, value in WEIGHTS.items() if key != "h.0.attn.c_attn.weight"}
    write_huggingface_files(source, tensors, "transformer.", {name: np.zeros((4, 16), np.float32)})
    assert part in refusal()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("model.gguf", "GGUF", "model.gguf is a model of llama.cpp"),
        ("pytorch_model.bin", "x", "pytorch_model.bin is a pickle file"),
        ("model.safetensors", POINTER, "model.safetensors is a Git LFS pointer"),
    ],
)
def test_sources_in_an_object_store_are_named_likewise(name, content, part, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/named/{name}": content.encode(), "/named/config.json": b"{}"})
    try:
        context = jobs.make_context(tmp_path, allowed_roots="memory://named")
        with pytest.raises(InvalidRequest, match=re.escape(part)):
            import_checkpoint(pb.ImportCheckpointRequest(uri="memory://named"), context)
    finally:
        memory.rm("/named", recursive=True)


@pytest.mark.parametrize(
    "uri",
    [
        "openai-community/gpt2",
        "https://huggingface.co/openai-community/gpt2",
        "https://hf.co/openai-community/gpt2/tree/main",
    ],
)
def test_a_hubs_id_or_page_in_place_of_a_uri_is_refused_at_once_with_what_to_write(uri):
    [(field, description)] = import_problems(pb.ImportCheckpointRequest(uri=uri), lambda _field, uri: uri)
    assert field == "uri"
    assert "write hf://openai-community/gpt2" in description
    for plain in ("hf://openai-community/gpt2", "file:///a/b", "/a/b", "s3://a/b", "https://a.org/models/124M"):
        assert import_problems(pb.ImportCheckpointRequest(uri=plain), lambda _field, uri: uri) == []


def test_a_folder_around_the_models_folder_is_named(source, refusal):
    (source / "snapshots" / "abc").mkdir(parents=True)
    write_huggingface_files(source / "snapshots" / "abc", WEIGHTS)
    assert "name its folder snapshots/abc, which has one" in refusal()


@pytest.mark.parametrize(
    ("vocab_size", "config"),
    [
        (ROWS, {}),
        (VOCABULARY_SIZE, {}),
        (ROWS, {"eos_token_id": None}),
        (ROWS, {"eos_token_id": 50256}),
        (ROWS, {"eos_token_id": ROWS - 1}),
    ],
)
def test_padding_of_the_vocabulary_is_cut_to_the_tokenizer_and_said(vocab_size, config, source, import_source, caplog):
    write_huggingface_files(source, PADDED, "transformer.", vocab_size=vocab_size, **config)
    write_pair(source)
    outputs = import_source()
    assert_weights(outputs, WEIGHTS)
    assert outputs["checkpoint"].properties["padding_rows_removed"] == str(ROWS - VOCABULARY_SIZE)
    assert f"padded beyond the tokenizer's {VOCABULARY_SIZE} tokens" in caplog.text
    logits = reference.logits(PADDED, TOKENS, 2, 2)[..., :VOCABULARY_SIZE]
    # A processor's library of matrix products may sum in another order for another number of columns.
    np.testing.assert_allclose(reference.logits(imported(outputs).weights, TOKENS, 2, 2), logits, rtol=0, atol=1e-12)


def test_rows_of_added_tokens_are_no_padding(source, import_source):
    write_huggingface_files(source, PADDED, vocab_size=ROWS)
    write_pair(source, ("vocab.json", "merges.txt"))
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": VOCABULARY_SIZE}))
    outputs = import_source()
    assert imported(outputs).architecture.vocabulary_size == VOCABULARY_SIZE + 1
    assert outputs["checkpoint"].properties["padding_rows_removed"] == str(ROWS - VOCABULARY_SIZE - 1)


def test_a_vocabulary_smaller_than_its_tokenizer_is_refused(source, refusal):
    rows = VOCABULARY_SIZE - 3
    write_huggingface_files(
        source, WEIGHTS | {"wte.weight": WEIGHTS["wte.weight"][:rows]}, vocab_size=rows, eos_token_id=None
    )
    write_pair(source)
    message = refusal()
    assert f"the tokenizer has {VOCABULARY_SIZE} tokens and the tensor wte.weight {rows} rows" in message
    assert "resize_token_embeddings" in message


def test_more_rows_than_any_padding_are_refused(source, refusal):
    rows = VOCABULARY_SIZE + 1024
    write_huggingface_files(source, WEIGHTS | {"wte.weight": np.ones((rows, 16), np.float32)}, vocab_size=rows)
    write_pair(source)
    assert "they do not belong together" in refusal()


def tokenizer_artifact(folder):
    working = make_tokenizer(folder.with_name("tokenizer-work"))
    return ArtifactWriter(folder.as_uri(), "tokenizer", working, {}, ()).commit()


def test_a_padded_model_without_tokenizer_is_exported_with_one(tensorflow_process, source, import_source, tmp_path):
    write_huggingface_files(source, PADDED, vocab_size=ROWS, eos_token_id=None)
    checkpoint = import_source()["checkpoint"]
    assert json.loads((jobs.folder({"uri": checkpoint.uri}) / "config.json").read_text())["vocabulary_size"] == ROWS
    tokenizer = tokenizer_artifact(tmp_path / "tokenizer")
    request = pb.ExportModelRequest(checkpoint_uri=checkpoint.uri, tokenizer_uri=tokenizer.uri).SerializeToString()
    exported = jobs.folder(tensorflow_process(computations.run_job, *EXPORT, request, str(tmp_path), "export")["model"])
    config = json.loads((exported / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (VOCABULARY_SIZE, END_TOKEN_ID)
    weights = load_file(exported / "model.safetensors")
    np.testing.assert_array_equal(weights["wte.weight"], WEIGHTS["wte.weight"])
    shutil.rmtree(source)
    assert import_source(exported.as_uri(), "again")["checkpoint"].properties["vocabulary_size"] == str(VOCABULARY_SIZE)


def test_a_padded_model_without_tokenizer_is_trained_and_evaluated_on_a_dataset(
    train, jax_process, source, import_source, tmp_path
):
    write_huggingface_files(source, PADDED, vocab_size=ROWS, eos_token_id=None)
    uri = import_source()["checkpoint"].uri
    trained = train(start={"checkpoint_uri": uri}, steps=1)["checkpoint"]
    assert (trained["vocabulary_size"], trained["end_token_id"]) == (str(VOCABULARY_SIZE), str(END_TOKEN_ID))
    assert (jobs.folder(trained) / "tokenizer").is_dir()
    request = pb.EvaluateModelRequest(checkpoint_uri=uri, dataset_uri=(tmp_path / "dataset").as_uri())
    result = jax_process(
        computations.run_job, *EVALUATE, request.SerializeToString(), str(tmp_path), "evaluate", keras_backend="jax"
    )
    assert float(result["evaluation"]["loss"]) == pytest.approx(float(trained["initial_validation_loss"]), rel=1e-3)


def test_a_padded_openai_checkpoint_is_cut(tensorflow_process, source, tmp_path):
    from trainer_support.sources import openai_variables

    tensorflow_process(computations.write_openai_checkpoint, str(source), openai_variables(PADDED))
    write_hparams(source, n_vocab=ROWS)
    write_pair(source)
    job = ("gpt2_trainer.jobs.import_checkpoint", "import_checkpoint", "ImportCheckpointRequest")
    request = pb.ImportCheckpointRequest(uri=source.as_uri()).SerializeToString()
    made = tensorflow_process(computations.run_job, *job, request, str(tmp_path), "import")["checkpoint"]
    assert (made["vocabulary_size"], made["end_token_id"]) == (str(VOCABULARY_SIZE), str(END_TOKEN_ID))


def test_padding_of_an_untied_head_is_cut_with_the_embedding(source, import_source):
    head = np.random.default_rng(2).normal(size=(ROWS, 16)).astype(np.float32)
    write_huggingface_files(
        source, PADDED, "transformer.", {"lm_head.weight": head}, vocab_size=ROWS, tie_word_embeddings=False
    )
    write_pair(source)
    weights = imported(import_source()).weights
    np.testing.assert_array_equal(weights["lm_head.weight"], head[:VOCABULARY_SIZE])
    np.testing.assert_array_equal(weights["wte.weight"], WEIGHTS["wte.weight"])
