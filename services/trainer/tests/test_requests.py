"""Requests become options with the defaults that the protocol promises, or violations that name each field."""

import json

import pytest

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer import requests, training_requests
from gpt2_trainer.configuration.sampling import SamplingOptions

MODEL = pb.ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=32)


def train_request(start=None, **config):
    return pb.TrainModelRequest(
        dataset_uri="file:///d", config=pb.TrainConfig(**{"steps": 200, **config}), **(start or {"model": MODEL})
    )


def options(request):
    assert training_requests.train_problems(request) == []
    return training_requests.training_options(request, 32, None)


def test_defaults_are_those_of_the_protocol():
    chosen = options(train_request())
    assert chosen.to_json() == {
        "steps": 200,
        "first_step": 0,
        "batch_size": 8,
        "accumulate_gradients": 1,
        "context_length": 32,
        "optimizer": "adamw",
        "learning_rate": 0.0006,
        "schedule": "cosine",
        "warmup_steps": 10,
        "final_learning_rate_fraction": 0.1,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "momentum": 0.0,
        "clip_norm": 1.0,
        "spike_factor": 10.0,
        "most_skipped_in_a_row": 10,
        "noise": 0.0,
        "only_train_transformer_layers": False,
        "lora": None,
        "memory_saving_gradients": False,
        "precision": "float32",
        "validate_every": 20,
        "validation_sequences": 64,
        "early_stopping_patience": 0,
        "early_stopping_min_delta": 0.0,
        "max_seconds": 0.0,
        "save_every": 20,
        "keep_checkpoints": 2,
        "sample_every": 0,
        "sample_num": 1,
        "sample_length": 128,
        "sample_prompt": "",
        "sampling": {
            "temperature": 1.0,
            "top_k": 40,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
        },
        "seed": 0,
        "report_every": 10,
        "devices": 0,
        "model_devices": 1,
    }
    assert type(chosen).from_json(chosen.to_json()) == chosen


def test_zeros_that_are_given_count():
    chosen = options(train_request(final_learning_rate_fraction=0.0, weight_decay=0.0, clip_norm=0.0, warmup_steps=-1))
    assert chosen.final_learning_rate_fraction == chosen.weight_decay == chosen.clip_norm == chosen.warmup_steps == 0
    given = pb.SamplingConfig(temperature=0.0, top_k=0, top_p=0.5, repetition_penalty=1.5, no_repeat_ngram_size=3)
    assert requests.sampling_options(given) == SamplingOptions(
        temperature=0.0, top_k=0, top_p=0.5, repetition_penalty=1.5, no_repeat_ngram_size=3
    )


def test_few_steps_have_sensible_defaults():
    chosen = options(train_request(steps=3))
    assert (chosen.validate_every, chosen.save_every, chosen.warmup_steps) == (1, 1, 0)
    assert options(train_request(steps=100_000)).save_every == 1000


def test_a_checkpoint_is_trained_more_gently():
    assert options(train_request({"checkpoint_uri": "file:///c"})).learning_rate == 0.00002


@pytest.mark.parametrize(("name", "layers"), [("124M", 12), ("117M", 12), ("345M", 24), ("355M", 24), ("1558M", 48)])
def test_sizes_go_by_old_and_new_names(name, layers):
    request = train_request({"model_size": name})
    assert training_requests.train_problems(request) == []
    assert training_requests.layer_sizes(request).n_layer == layers


def test_other_optimizers_have_no_decay():
    assert options(train_request(optimizer="sgd")).weight_decay == 0


@pytest.mark.parametrize(
    ("config", "field", "part"),
    [
        ({"steps": 0}, "config.steps", "is required, or epochs"),
        ({"steps": -1}, "config.steps", "at least 1"),
        ({"epochs": 1.0}, "config.steps", "goes without epochs"),
        ({"steps": 0, "epochs": -1.0}, "config.epochs", "over 0"),
        ({"steps": 0, "epochs": float("nan")}, "config.epochs", "over 0"),
        ({"batch_tokens": 100}, "config.batch_tokens", "multiple of the context_length 32: 96 would"),
        ({"batch_tokens": 20}, "config.batch_tokens", "multiple of the context_length 32: 32 would"),
        ({"batch_tokens": -32}, "config.batch_tokens", "multiple of the context_length 32"),
        ({"batch_tokens": 64, "batch_size": 2}, "config.batch_tokens", "goes without batch_size"),
        (
            {"micro_batch_size": 3},
            "config.micro_batch_size",
            "divide the 8 sequences that batch_size makes an update of: 2",
        ),
        ({"micro_batch_size": 16}, "config.micro_batch_size", "divide the 8 sequences"),
        ({"micro_batch_size": -1}, "config.micro_batch_size", "divide the 8 sequences"),
        ({"micro_batch_size": 2, "accumulate_gradients": 4}, "config.micro_batch_size", "goes without accumulate"),
        ({"beta1": 1.0}, "config.beta1", "from 0 to under 1"),
        ({"beta2": -0.1}, "config.beta2", "from 0 to under 1"),
        ({"beta1": 0.5, "optimizer": "sgd"}, "config.beta1", "optimizer adamw and adam only, not with 'sgd'"),
        ({"epsilon": 0.0}, "config.epsilon", "over 0"),
        ({"epsilon": 1e-6, "optimizer": "adafactor"}, "config.epsilon", "adamw and adam only"),
        ({"momentum": 0.9}, "config.momentum", "optimizer sgd only, not with 'adamw'"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "config.momentum", "from 0 to under 1"),
        ({"lora": pb.LoraConfig(rank=-1)}, "config.lora.rank", "at least 1"),
        ({"lora": pb.LoraConfig(alpha=-1)}, "config.lora.alpha", "over 0"),
        ({"lora": pb.LoraConfig(targets=["wte"])}, "config.lora.targets", "not 'wte'"),
        ({"lora": pb.LoraConfig(targets=["mlp.c_fc"] * 2)}, "config.lora.targets", "twice"),
        (
            {"lora": pb.LoraConfig(), "only_train_transformer_layers": True},
            "config.only_train_transformer_layers",
            "without lora",
        ),
        ({"early_stopping_patience": -1}, "config.early_stopping_patience", "at least 0"),
        ({"early_stopping_min_delta": -0.1}, "config.early_stopping_min_delta", "0 or greater"),
        ({"max_seconds": -1.0}, "config.max_seconds", "0 (no limit) or greater"),
        ({"spike_factor": 1.0}, "config.spike_factor", "over 1"),
        ({"most_skipped_in_a_row": -1}, "config.most_skipped_in_a_row", "at least 1"),
        ({"batch_size": -1}, "config.batch_size", "at least 1"),
        ({"accumulate_gradients": 3}, "config.accumulate_gradients", "divide batch_size, which is 8: 2 would"),
        ({"context_length": 33}, "config.context_length", "at most 32"),
        ({"context_length": -1}, "config.context_length", "at least 1"),
        ({"optimizer": "lion"}, "config.optimizer", "one of adamw, adam, sgd, adafactor, not 'lion'"),
        ({"learning_rate": -1.0}, "config.learning_rate", "over 0"),
        ({"learning_rate": float("nan")}, "config.learning_rate", "over 0"),
        ({"learning_rate": float("inf")}, "config.learning_rate", "over 0"),
        ({"schedule": "step"}, "config.schedule", "one of cosine, linear, constant"),
        ({"warmup_steps": -2}, "config.warmup_steps", "at least 0"),
        ({"warmup_steps": 201}, "config.warmup_steps", "at most the 200 steps"),
        ({"final_learning_rate_fraction": 1.1}, "config.final_learning_rate_fraction", "from 0 to 1"),
        ({"weight_decay": -0.1}, "config.weight_decay", "0 or greater"),
        ({"weight_decay": 0.1, "optimizer": "adam"}, "config.weight_decay", "adamw and adafactor only"),
        ({"clip_norm": -1.0}, "config.clip_norm", "0 (no limit) or greater"),
        ({"noise": 1.5}, "config.noise", "from 0 to 1"),
        ({"precision": "float16"}, "config.precision", "one of float32, bfloat16"),
        ({"validate_every": -1}, "config.validate_every", "at least 1"),
        ({"validation_sequences": -1}, "config.validation_sequences", "at least 1"),
        ({"save_every": -1}, "config.save_every", "at least 1"),
        ({"keep_checkpoints": -1}, "config.keep_checkpoints", "at least 1"),
        ({"sample_every": -1}, "config.sample_every", "at least 0"),
        ({"sample_num": -1}, "config.sample_num", "at least 1"),
        ({"sample_length": -1}, "config.sample_length", "at least 1"),
        ({"report_every": -1}, "config.report_every", "at least 1"),
        ({"sampling": pb.SamplingConfig(top_p=0.0)}, "config.sampling.top_p", "over 0 and at most 1"),
    ],
)
def test_each_wrong_option_is_named(config, field, part):
    [(found, description)] = training_requests.train_problems(train_request(**config))
    assert found == field
    assert part in description


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.TrainModelRequest(), ["dataset_uri", "start", "config.steps"]),
        (train_request({"model_size": "9000B"}), ["model_size"]),
        (train_request({"checkpoint_uri": ""}), ["checkpoint_uri"]),
        (train_request({"model": pb.ModelConfig(n_layer=1, n_head=3, n_embd=8, n_ctx=4)}), ["model.n_head"]),
        (train_request({"model": pb.ModelConfig()}), ["model.n_layer", "model.n_head", "model.n_embd", "model.n_ctx"]),
    ],
)
def test_wrong_starts_are_named(request_, fields):
    assert [field for field, _ in training_requests.train_problems(request_)] == fields


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_uri": ""}, "model_uri"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1_000_001}, "max_tokens"),
        ({"samples": 65}, "samples"),
        ({"samples": -1}, "samples"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"sampling": pb.SamplingConfig(temperature=-1.0)}, "sampling.temperature"),
        ({"sampling": pb.SamplingConfig(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": pb.SamplingConfig(top_k=-1)}, "sampling.top_k"),
        ({"sampling": pb.SamplingConfig(top_p=1.1)}, "sampling.top_p"),
        ({"sampling": pb.SamplingConfig(repetition_penalty=0)}, "sampling.repetition_penalty"),
        ({"sampling": pb.SamplingConfig(repetition_penalty=-1)}, "sampling.repetition_penalty"),
        ({"sampling": pb.SamplingConfig(repetition_penalty=float("nan"))}, "sampling.repetition_penalty"),
        ({"sampling": pb.SamplingConfig(repetition_penalty=101)}, "sampling.repetition_penalty"),
        ({"sampling": pb.SamplingConfig(no_repeat_ngram_size=-1)}, "sampling.no_repeat_ngram_size"),
        ({"prompts": ["x"] * 1025}, "prompts"),
        ({"prompts": ["x"], "prompt": "y"}, "prompts"),
    ],
)
def test_each_wrong_wish_for_text_is_named(changes, field):
    request = pb.GenerateRequest(**{"model_uri": "file:///m", **changes})
    assert [found for found, _ in requests.generate_problems(request)] == [field]


def test_imports_and_exports_need_a_source():
    assert requests.import_problems(pb.ImportCheckpointRequest())[0][0] == "source"
    assert requests.import_problems(pb.ImportCheckpointRequest(uri=""))[0][0] == "uri"
    [(field, description)] = requests.import_problems(pb.ImportCheckpointRequest(openai_model="2B"))
    assert field == "openai_model"
    assert "124M, 117M, 355M, 345M, 774M, 1558M" in description
    assert requests.import_problems(pb.ImportCheckpointRequest(openai_model="117M")) == []
    assert requests.export_problems(pb.ExportModelRequest())[0][0] == "checkpoint_uri"


def test_epochs_become_steps_by_the_number_of_sequences():
    request = train_request(steps=0, epochs=2.5, batch_size=4)
    assert training_requests.train_problems(request) == []
    # 3,200 tokens and one that is only a target: 100 sequences of 32.
    chosen = training_requests.training_options(request, 32, 3201)
    assert chosen.steps == 63
    assert chosen.warmup_steps == 3
    assert training_requests.training_options(request, 32, 3200).steps == 62


def test_batches_are_given_in_tokens_and_in_sequences():
    assert options(train_request(batch_tokens=128)).batch_size == 4
    assert options(train_request(batch_tokens=128, context_length=16)).batch_size == 8
    chosen = options(train_request(batch_tokens=256, micro_batch_size=2))
    assert (chosen.batch_size, chosen.accumulate_gradients, chosen.micro_batch_size) == (8, 4, 2)
    checkpoint = train_request({"checkpoint_uri": "file:///c"}, batch_tokens=100)
    # The context length is not known before the checkpoint is read.
    assert training_requests.train_problems(checkpoint) == []
    [(field, _)] = training_requests.sized_problems(
        checkpoint,
        training_requests.training_options(checkpoint, 32, None),
        training_requests.layer_sizes(train_request()),
    )
    assert field == "config.batch_tokens"


def test_optimizers_have_their_own_defaults():
    assert options(train_request(optimizer="adam")).beta2 == 0.999
    assert options(train_request(optimizer="adafactor")).weight_decay == 0
    assert options(train_request(optimizer="adafactor", weight_decay=0.1)).weight_decay == 0.1
    assert options(train_request(optimizer="sgd", momentum=0.9)).momentum == 0.9


def test_lora_has_defaults_and_survives_json():
    chosen = options(train_request(lora=pb.LoraConfig()))
    assert (chosen.lora.rank, chosen.lora.alpha, len(chosen.lora.targets)) == (8, 16.0, 4)
    assert type(chosen).from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert training_requests.as_table(chosen)["lora.rank"] == 8
    request = train_request(lora=pb.LoraConfig(rank=9))
    layers = training_requests.layer_sizes(request)
    [(field, text)] = training_requests.sized_problems(request, options(request), layers)
    assert (field, text) == ("config.lora.rank", "must be at most 8, the model's n_embd")
