"""Relatives of GPT-2 compute what transformers computes of their config.json, wherever a model runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from trainer_support import computations, reference
from trainer_support.data import END_TOKEN_ID, VOCABULARY_SIZE, random_weights, write_pair
from trainer_support.jobs import folder
from trainer_support.sources import write_huggingface_files

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes, Variant
from gpt2_trainer.configuration.resolution import new_layer_sizes
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.evaluation.sequences import cut_spans
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.huggingface import read_huggingface
from gpt2_trainer.memory import estimate_memory
from gpt2_trainer.model.lora import initial_adapters
from gpt2_trainer.model.weights import count_parameters, is_decayed, weight_shapes
from gpt2_trainer.training.mfu import flops_per_token

RELATIVES = {
    "exact gelu": {"activation_function": "gelu"},
    "epsilon": {"layer_norm_epsilon": 0.05},
    "unscaled attention": {"scale_attn_weights": False},
    "inverse-layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "narrow MLP": {"n_inner": 24},
    "untied head": {"tie_word_embeddings": False},
}
ALL = {name: value for relative in RELATIVES.values() for name, value in relative.items()}
SIZES = ("n_layer", "n_head", "n_embd", "n_ctx")
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=2,
    context_length=8,
    optimizer="sgd",
    learning_rate=1.0,
    schedule="constant",
    clip_norm=None,
    validate_every=10,
    save_every=10,
)
IMPORT = ("gpt2_trainer.jobs.import_checkpoint", "import_checkpoint", "ImportCheckpointRequest")
EXPORT = ("gpt2_trainer.jobs.export", "export_model", "ExportModelRequest")
EVALUATE = ("gpt2_trainer.jobs.evaluate", "evaluate_model", "EvaluateModelRequest")


def architecture(n_layer=2, **config):
    layers = LayerSizes.of(n_layer=n_layer, n_head=2, n_embd=16, n_ctx=16, n_inner=config.pop("n_inner", 0))
    variant = Variant(**config)
    return Architecture(layers=layers, vocabulary_size=VOCABULARY_SIZE, end_token_id=END_TOKEN_ID, variant=variant)


def tokens(*shape):
    return np.random.default_rng(3).integers(0, VOCABULARY_SIZE, shape, dtype=np.int32)


def logits(weights, token_ids, **relative):
    return reference.logits(weights, token_ids, 2, 2, **relative)


@pytest.mark.parametrize(
    "relative",
    [*(pytest.param(value, marks=pytest.mark.exhaustive) for value in RELATIVES.values()), ALL],
    ids=[*RELATIVES, "all"],
)
def test_logits_of_a_relative_are_those_of_its_config(backend, relative):
    # Great enough that each difference shows.
    weights = {name: 3 * value for name, value in random_weights(architecture(**relative)).items()}
    ours = backend(computations.model_logits, architecture(**relative), weights, tokens(2, 9))
    expected = logits(weights, tokens(2, 9), **relative)
    np.testing.assert_allclose(ours[..., :VOCABULARY_SIZE], expected, atol=5e-4, rtol=1e-4)
    if "n_inner" not in relative:
        usual = {name: value for name, value in weights.items() if name != "lm_head.weight"}
        assert np.abs(logits(usual, tokens(2, 9)) - expected).max() > 0.004


def test_gradients_of_a_relative_agree_with_differences_of_the_reference_loss(backend):
    relative = architecture(**ALL)
    weights, batch = random_weights(relative), tuple(tokens(2, 2, 8))
    updated, [(loss, _, _)] = backend(computations.train_steps, relative, weights, OPTIONS, [batch])
    assert loss == pytest.approx(reference.losses(weights, *batch, 2, 2, **ALL).mean(), abs=1e-5)
    random = np.random.default_rng(0)
    for name, value in weights.items():
        direction = random.normal(size=value.shape)
        sides = [
            reference.losses(
                {**weights, name: value.astype(np.float64) + sign * 1e-4 * direction}, *batch, 2, 2, **ALL
            ).mean()
            for sign in (1, -1)
        ]
        slope = (sides[0] - sides[1]) / 2e-4
        gradient = weights[name] - updated[name]
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=5e-5), name


def test_a_relative_generates_what_full_recomputation_does(backend):
    weights, greedy = random_weights(architecture(**ALL)), SamplingConfig(temperature=0.0)
    made = backend(computations.generated, architecture(**ALL), weights, [5, 9, 2], 2, 20, greedy, 0)
    expected = reference.greedy(weights, [5, 9, 2], 20, 2, 2, 16, **ALL)
    assert made.tolist() == [expected, expected]


def test_an_untied_head_is_multiplied_by_in_bfloat16(jax_process):
    """Its matrix, not the token embedding, is the one that is kept in pairs."""
    relative = architecture(tie_word_embeddings=False)
    weights, greedy = random_weights(relative), SamplingConfig(temperature=0.0)
    arguments = relative, weights, [5, 9, 2], 1, 12, greedy, 0
    exact, rough = (jax_process(computations.generated, *arguments, precision=name) for name in ("float32", "bfloat16"))
    assert (exact == rough).mean() > 0.7


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    write_pair(path, ("vocab.json", "merges.txt"))
    weights = random_weights(architecture(**ALL))
    head = {"lm_head.weight": weights.pop("lm_head.weight")}
    extra = {"transformer.lm_head.weight": None, **head}
    write_huggingface_files(path, weights, "transformer.", extra, reorder_and_upcast_attn=True, **ALL)
    return path


def test_a_relative_is_imported_trained_exported_served_and_evaluated(tensorflow_process, train, source, tmp_path):
    request = pb.ImportCheckpointRequest(uri=source.as_uri())
    imported = tensorflow_process(computations.run_job, *IMPORT, request.SerializeToString(), str(tmp_path), "import")
    assert imported["checkpoint"]["activation_function"] == "gelu"
    checkpoint = read_checkpoint(folder(imported["checkpoint"]), with_optimizer=False)
    assert checkpoint.architecture == architecture(**ALL)
    # Import and export lose nothing.
    for name, value in random_weights(architecture(**ALL)).items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)

    outputs = train({"checkpoint_uri": imported["checkpoint"]["uri"]}, job_id="train", steps=2)
    trained = read_checkpoint(folder(outputs["checkpoint"]), with_optimizer=False)
    assert trained.architecture == architecture(**ALL)
    assert not np.array_equal(trained.weights["lm_head.weight"], checkpoint.weights["lm_head.weight"])

    request = pb.ExportModelRequest(checkpoint_uri=outputs["checkpoint"]["uri"])
    exported = tensorflow_process(computations.run_job, *EXPORT, request.SerializeToString(), str(tmp_path), "export")
    model = folder(exported["model"])
    config = json.loads((model / "config.json").read_text())
    assert {name: config[name] for name in ALL} == ALL
    names = set(load_file(model / "model.safetensors"))
    assert names == {
        name if name == "lm_head.weight" else f"transformer.{name}" for name in weight_shapes(architecture(**ALL))
    }
    read, weights = read_huggingface(model, "uri")
    assert read == architecture(**ALL)
    for name, value in trained.weights.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)

    prompt = tokens(1, 5)
    served = tensorflow_process(computations.served_logits, str(model / "saved_model"), prompt)
    np.testing.assert_allclose(served, logits(weights, prompt, **ALL), atol=1e-4)
    made, _ = tensorflow_process(computations.served_text, str(model / "saved_model"), prompt.tolist(), 8)
    greedy = reference.greedy(weights, prompt[0].tolist(), 8, 2, 2, 16, **ALL)
    assert made[0].tolist()[: greedy.index(END_TOKEN_ID) if END_TOKEN_ID in greedy else 8] == greedy[: made.shape[1]]

    request = pb.EvaluateModelRequest(model_uri=exported["model"]["uri"], dataset_uri=(tmp_path / "dataset").as_uri())
    request.sequences = 4
    evaluated = tensorflow_process(
        computations.run_job, *EVALUATE, request.SerializeToString(), str(tmp_path), "evaluate"
    )
    stream = np.concatenate([np.load(path) for path in sorted((tmp_path / "dataset").glob("validation-*.npy"))])
    stream = stream.astype(np.int32)
    preceded = np.concatenate([[END_TOKEN_ID], stream])
    ends = [*(np.flatnonzero(stream == END_TOKEN_ID) + 1).tolist(), len(stream)]
    spans = list(cut_spans(ends, 16))
    spans = [slice(*spans[number * len(spans) // 4]) for number in range(4)]
    losses = [reference.losses(weights, preceded[None, span], stream[None, span], 2, 2, **ALL)[0] for span in spans]
    expected = np.average(losses, weights=[span.stop - span.start for span in spans])
    assert float(evaluated["evaluation"]["loss"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"])
def test_names_of_the_tanh_gelu_are_one(tmp_path, name):
    write_huggingface_files(tmp_path, random_weights(architecture()), activation_function=name, n_inner=64)
    assert read_huggingface(tmp_path, "uri")[0] == architecture()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "activation_function 'relu'"),
        ({"activation_function": "silu"}, "activation_function 'silu'"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu'"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be over 0"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5', no float"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be over 0"),
        ({"scale_attn_weights": 1}, "scale_attn_weights is 1, no bool"),
        ({"n_inner": -1}, "n_inner must be 1 to 524,288, not -1"),
        ({"n_inner": 24}, "h.0.mlp.c_fc.weight has shape [16, 64] where config.json asks for [16, 24]"),
        ({"n_inner": True}, "n_inner is True, no whole number"),
        ({"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
    ],
)
def test_a_relative_that_is_not_supported_is_refused_by_name(tmp_path, config, message):
    write_huggingface_files(tmp_path, random_weights(architecture()), **config)
    with pytest.raises(InvalidRequest) as refused:
        read_huggingface(tmp_path, "uri")
    assert message in str(refused.value)


def test_a_head_that_differs_where_config_ties_it_is_refused_with_what_to_do(tmp_path):
    head = {"lm_head.weight": np.zeros((VOCABULARY_SIZE, 16), np.float32)}
    write_huggingface_files(tmp_path, random_weights(architecture()), extra=head)
    with pytest.raises(InvalidRequest, match=r"tie_word_embeddings.*false.*in config.json"):
        read_huggingface(tmp_path, "uri")


def test_checkpoints_of_gpt2_itself_say_nothing_of_relatives():
    assert list(architecture().to_json()) == [*SIZES, "vocabulary_size", "end_token_id"]
    for relative in ({}, *RELATIVES.values(), ALL):
        content = json.loads(json.dumps(architecture(**relative).to_json()))
        assert Architecture.from_json(content) == architecture(**relative)


def test_the_width_of_the_mlp_can_be_chosen_from_scratch():
    def sizes(n_inner):
        model = pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, n_inner=n_inner)
        return new_layer_sizes(pb.TrainModelRequest(model=model))

    assert sizes(24).inner_size == 24
    assert sizes(0) == sizes(64)
    assert sizes(-1).problems() == [("n_inner", "must be 1 to 524,288, not -1")]


def test_adapters_memory_and_speed_know_the_shapes_of_relatives():
    narrow, untied = architecture(n_inner=24), architecture(tie_word_embeddings=False)
    adapters = initial_adapters(narrow, LoraConfig(rank=2), seed=0)
    assert adapters["lora_b/h.0.mlp.c_fc.weight"].shape == (2, 24)
    assert adapters["lora_a/h.0.mlp.c_proj.weight"].shape == (24, 2)

    def estimate(of):
        return estimate_memory(of, replace(OPTIONS, optimizer="adamw"), on_host=False)

    usual, rows = estimate(architecture()), architecture().padded_vocabulary_size
    assert estimate(untied).weights - usual.weights == 4 * rows * 16
    assert estimate(untied).optimizer - usual.optimizer == 8 * rows * 16
    assert estimate(narrow).activations < usual.activations
    assert count_parameters(untied) - count_parameters(architecture()) == VOCABULARY_SIZE * 16
    assert flops_per_token(untied, 8) == flops_per_token(architecture(), 8)
    assert flops_per_token(architecture(), 8) - flops_per_token(narrow, 8) == 6 * 2 * (2 * 16 * 40 + 40)
    assert is_decayed("lm_head.weight")


def test_an_untied_head_is_divided_among_devices(four_devices_process):
    relative = architecture(**ALL)
    options = replace(OPTIONS, devices=4, model_devices=2)
    layouts = four_devices_process(computations.step_layouts, relative, random_weights(relative), options)
    assert layouts["lm_head.weight"] == (4, (relative.padded_vocabulary_size // 2, 16))
