"""Requests become options with the defaults that the protocol promises, or violations that name each field."""

import json
from typing import get_args

import pytest
from request_problems import request_problems

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_contracts.dataset import DatasetDescription, SplitSize
from gpt2_rules.reading import rules_of
from gpt2_trainer import validation
from gpt2_trainer.admission import admit_training
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES
from gpt2_trainer.configuration.earlier_names import CONFIG_NAMES
from gpt2_trainer.configuration.recipes import AUTO
from gpt2_trainer.configuration.resolution import inherit, new_layer_sizes, resolve_training_config
from gpt2_trainer.configuration.sampling import SamplingConfig, resolve_sampling_config
from gpt2_trainer.configuration.training import (
    TARGETS,
    CooldownName,
    OptimizerName,
    Precision,
    RecipeName,
    ResolvedTrainingConfig,
    ScheduleName,
    WeightDecayScheduleName,
)

MODEL = pb.ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=32)


def train_request(start=None, **config):
    return pb.TrainModelRequest(
        dataset_uri="file:///d", config=pb.TrainConfig(**{"steps": 200, **config}), **(start or {"model": MODEL})
    )


def all_problems(request):
    return request_problems(request, validation.train_problems(request))


def options(request):
    assert all_problems(request) == []
    return resolve_training_config(request, 32, 6401)


def test_defaults_are_those_of_the_protocol():
    chosen = options(train_request())
    assert chosen.to_json() == {
        "steps": 200,
        "first_step": 0,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "context_length": 32,
        "recipe": None,
        "optimizer": "adamw",
        "learning_rate": 0.0006,
        "schedule": "cosine",
        "warmup_steps": 10,
        "final_learning_rate_fraction": 0.1,
        "cooldown_steps": None,
        "cooldown": "1-sqrt",
        "reshuffle_documents": False,
        "ema_decay": 0.0,
        "weight_decay": 0.1,
        "weight_decay_schedule": "constant",
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "momentum": 0.0,
        "clip_norm": 1.0,
        "spike_factor": 10.0,
        "max_consecutive_skipped_updates": 10,
        "noise": 0.0,
        "only_train_transformer_layers": False,
        "embeddings_only_steps": 0,
        "lora": None,
        "gradient_checkpointing": False,
        "precision": "float32",
        "validate_every": 20,
        "validation_sequences": 64,
        "early_stopping_patience": None,
        "early_stopping_min_delta": 0.0,
        "max_seconds": None,
        "save_every": 20,
        "keep_checkpoints": 2,
        "sample_every": None,
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
        "log_every": 10,
        "devices": None,
        "model_devices": 1,
        "num_nodes": 1,
    }
    assert type(chosen).from_json(chosen.to_json()) == chosen


def test_zeros_that_are_given_count():
    chosen = options(train_request(final_learning_rate_fraction=0.0, weight_decay=0.0, clip_norm=0.0, warmup_steps=-1))
    assert chosen.final_learning_rate_fraction == chosen.weight_decay == chosen.warmup_steps == 0
    assert chosen.clip_norm is None
    given = pb.SamplingConfig(temperature=0.0, top_k=0, top_p=0.5, repetition_penalty=1.5, no_repeat_ngram_size=3)
    assert resolve_sampling_config(given) == SamplingConfig(
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
    assert validation.train_problems(request) == []
    assert new_layer_sizes(request).n_layer == layers


def test_other_optimizers_have_no_decay():
    assert options(train_request(optimizer="sgd")).weight_decay == 0


@pytest.mark.parametrize(
    ("config", "field", "part"),
    [
        ({"steps": 0}, "config.steps", "is required, or epochs"),
        ({"epochs": 1.0}, "config.steps", "goes without epochs"),
        ({"steps": 0, "epochs": -1.0}, "config.epochs", "over 0"),
        ({"steps": 0, "epochs": float("nan")}, "config.epochs", "over 0"),
        ({"batch_tokens": 100}, "config.batch_tokens", "multiple of the context_length 32: 96 would"),
        ({"batch_tokens": 20}, "config.batch_tokens", "multiple of the context_length 32: 32 would"),
        ({"batch_tokens": -32}, "config.batch_tokens", "1 or greater"),
        ({"batch_tokens": 64, "batch_size": 2}, "config.batch_tokens", "goes without batch_size"),
        (
            {"micro_batch_size": 3},
            "config.micro_batch_size",
            "divide the 8 sequences that batch_size makes an update of: 2",
        ),
        ({"micro_batch_size": 16}, "config.micro_batch_size", "divide the 8 sequences"),
        ({"micro_batch_size": -1}, "config.micro_batch_size", "1 or greater"),
        (
            {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
            "config.micro_batch_size",
            "goes without gradient_accumulation",
        ),
        ({"beta1": 0.5, "optimizer": "sgd"}, "config.beta1", "optimizer adamw, adam and muon only, not with 'sgd'"),
        ({"epsilon": 1e-6, "optimizer": "adafactor"}, "config.epsilon", "adamw, adam and muon only"),
        ({"momentum": 0.9}, "config.momentum", "optimizer sgd and muon only, not with 'adamw'"),
        ({"lora": pb.LoraConfig(targets=["mlp.c_fc"] * 2)}, "config.lora.targets[1]", "twice"),
        (
            {"lora": pb.LoraConfig(), "only_train_transformer_layers": True},
            "config.only_train_transformer_layers",
            "without lora",
        ),
        (
            {"gradient_accumulation_steps": 3},
            "config.gradient_accumulation_steps",
            "divide batch_size, which is 8: 2 would",
        ),
        ({"context_length": 33}, "config.context_length", "at most 32"),
        ({"optimizer": "lion"}, "config.optimizer", "one of adamw, adam, sgd, adafactor, muon, not 'lion'"),
        ({"learning_rate": float("nan")}, "config.learning_rate", "over 0"),
        ({"warmup_steps": 201}, "config.warmup_steps", "at most the 200 steps"),
        ({"cooldown_steps": 10}, "config.cooldown_steps", "schedule wsd only"),
        ({"cooldown": "linear", "schedule": "cosine"}, "config.cooldown", "schedule wsd only"),
        (
            {"schedule": "wsd", "warmup_steps": 100, "cooldown_steps": 101},
            "config.cooldown_steps",
            "at most the 200 steps of the training together",
        ),
        ({"embeddings_only_steps": 201}, "config.embeddings_only_steps", "at most the 200 steps"),
        ({"embeddings_only_steps": -1}, "config.embeddings_only_steps", "0 or greater"),
        ({"embeddings_only_steps": 1, "lora": pb.LoraConfig()}, "config.embeddings_only_steps", "goes without lora"),
        (
            {"embeddings_only_steps": 1, "only_train_transformer_layers": True},
            "config.embeddings_only_steps",
            "goes without only_train_transformer_layers",
        ),
        ({"weight_decay": 0.1, "optimizer": "adam"}, "config.weight_decay", "adamw, adafactor and muon only"),
        ({"weight_decay_schedule": "linear", "optimizer": "sgd"}, "config.weight_decay_schedule", "and muon only"),
        ({"weight_decay_schedule": "cosine"}, "config.weight_decay_schedule", "one of constant, linear, not 'cosine'"),
    ],
)
def test_each_wrong_option_is_named(config, field, part):
    [(found, description)] = all_problems(train_request(**config))
    assert found == field
    assert part in description


def test_wrong_values_hide_no_others():
    wrong = {"learning_rate": -1.0, "optimizer": "lion", "lora": pb.LoraConfig(rank=-1), "momentum": 0.5}
    assert [field for field, _ in all_problems(train_request(**wrong, micro_batch_size=3))] == [
        "config.optimizer",
        "config.learning_rate",
        "config.lora.rank",
        "config.micro_batch_size",
    ]
    # Whether sizes fit together is said of sizes that are right.
    sizes = {"batch_size": -8, "gradient_accumulation_steps": 3, "devices": 3, "epochs": 1.0}
    assert [field for field, _ in all_problems(train_request(**sizes))] == ["config.batch_size", "config.steps"]


def test_what_would_divide_great_batches_is_found_at_once():
    great = {"batch_size": 2**31 - 1, "gradient_accumulation_steps": 2**31 - 2}
    assert all_problems(train_request(**great))[0][1] == "must divide batch_size, which is 2147483647: 1 would"


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.TrainModelRequest(), ["dataset_uri", "start", "config"]),
        (train_request({"model_size": "9000B"}), ["model_size"]),
        (train_request({"checkpoint_uri": ""}), ["checkpoint_uri"]),
        (train_request({"model": pb.ModelConfig(n_layer=1, n_head=3, n_embd=8, n_ctx=4)}), ["model.n_head"]),
        (train_request({"model": pb.ModelConfig()}), ["model.n_layer", "model.n_head", "model.n_embd", "model.n_ctx"]),
    ],
)
def test_wrong_starts_are_named(request_, fields):
    assert [field for field, _ in all_problems(request_)] == fields


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
    assert [found for found, _ in request_problems(request, validation.generate_problems(request))] == [field]


@pytest.mark.parametrize(
    ("request_", "field", "description"),
    [
        (pb.ImportCheckpointRequest(), "source", "openai_model or uri"),
        (pb.ImportCheckpointRequest(uri=""), "uri", "empty"),
        (pb.ImportCheckpointRequest(openai_model="2B"), "openai_model", "124M, 117M, 355M, 345M, 774M, 1558M"),
        (pb.ExportModelRequest(), "checkpoint_uri", "is required"),
    ],
)
def test_imports_and_exports_need_a_source(request_, field, description):
    [(found, text)] = request_problems(request_)
    assert found == field
    assert description in text


def test_epochs_become_steps_by_the_number_of_sequences():
    request = train_request(steps=0, epochs=2.5, batch_size=4)
    assert validation.train_problems(request) == []
    # 3,200 tokens and one that is only a target: 100 sequences of 32.
    chosen = resolve_training_config(request, 32, 3201)
    assert chosen.steps == 63
    assert chosen.warmup_steps == 3
    assert resolve_training_config(request, 32, 3200).steps == 62


def test_batches_are_given_in_tokens_and_in_sequences():
    assert options(train_request(batch_tokens=128)).batch_size == 4
    assert options(train_request(batch_tokens=128, context_length=16)).batch_size == 8
    chosen = options(train_request(batch_tokens=256, micro_batch_size=2))
    assert (chosen.batch_size, chosen.gradient_accumulation_steps, chosen.micro_batch_size) == (8, 4, 2)
    checkpoint = train_request({"checkpoint_uri": "file:///c"}, batch_tokens=100)
    # The context length is not known before the checkpoint is read.
    assert validation.train_problems(checkpoint) == []
    [(field, _)] = validation.size_problems(checkpoint.config, 32, 6401)
    assert field == "config.batch_tokens"


def test_optimizers_have_their_own_defaults():
    assert options(train_request(optimizer="adam")).beta2 == 0.999
    assert options(train_request(optimizer="adafactor")).weight_decay == 0
    assert options(train_request(optimizer="adafactor", weight_decay=0.1)).weight_decay == 0.1
    assert options(train_request(optimizer="sgd", momentum=0.9)).momentum == 0.9
    muon = options(train_request(optimizer="muon"))
    assert (muon.momentum, muon.beta2, muon.weight_decay, muon.learning_rate) == (0.95, 0.95, 0.1, 0.003)
    assert options(train_request({"checkpoint_uri": "file:///c"}, optimizer="muon")).learning_rate == 2e-5
    assert options(train_request({"checkpoint_uri": "file:///c"})).optimizer == "adamw"


def test_wsd_cools_down_over_a_fifth_to_zero():
    chosen = options(train_request(schedule="wsd"))
    assert (chosen.warmup_steps, chosen.cooldown_steps, chosen.final_learning_rate_fraction) == (10, 40, 0.0)
    assert options(train_request(schedule="wsd", cooldown_steps=50)).cooldown_steps == 50


def test_lora_has_defaults_and_survives_json():
    chosen = options(train_request(lora=pb.LoraConfig()))
    assert (chosen.lora.rank, chosen.lora.alpha, len(chosen.lora.targets)) == (8, 16.0, 4)
    assert type(chosen).from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert chosen.hyperparameters()["lora.rank"] == 8
    request = train_request(lora=pb.LoraConfig(rank=9))
    dataset = DatasetDescription(
        vocabulary_size=9,
        end_token_id=0,
        tokenizer_digest="",
        train=SplitSize(tokens=100, documents=1),
        validation=SplitSize(tokens=100, documents=1),
    )
    with pytest.raises(InvalidRequest) as caught:
        admit_training(request, new_layer_sizes(request), dataset)
    [(field, text)] = caught.value.violations
    assert (field, text) == ("config.lora.rank", "must be at most 8, the model's n_embd")


def test_steps_of_the_embeddings_alone_are_compared_with_steps_that_epochs_make():
    request = train_request(steps=0, epochs=1.0, embeddings_only_steps=4)
    sizes = [SplitSize(tokens=tokens, documents=1) for tokens in (32 * 8 * 4 + 1, 100)]
    dataset = DatasetDescription(
        vocabulary_size=9, end_token_id=0, tokenizer_digest="", train=sizes[0], validation=sizes[1]
    )
    assert admit_training(request, new_layer_sizes(request), dataset).embeddings_only_steps == 4
    request.config.embeddings_only_steps = 5
    with pytest.raises(InvalidRequest, match="must be at most the 4 steps"):
        admit_training(request, new_layer_sizes(request), dataset)


@pytest.mark.parametrize(
    "config",
    [
        {"embeddings_only_steps": 150},
        {},
        {"clip_norm": 0.0, "spike_factor": 0.0, "weight_decay": 0.0, "dropout": 0.1, "attention_dropout": 0.0},
        {"optimizer": "adam", "lora": pb.LoraConfig(rank=2, targets=["mlp.c_fc"]), "devices": 2, "model_devices": 2},
        {"optimizer": "sgd", "momentum": 0.9, "sampling": pb.SamplingConfig(temperature=0.0), "batch_tokens": 128},
        {"sample_every": 3, "sample_prompt": "x", "seed": -1, "noise": 0.1, "micro_batch_size": 2},
    ],
    ids=str,
)
def test_a_request_that_leaves_all_out_inherits_the_whole_configuration(config):
    continued = options(train_request(**config))
    request = pb.TrainModelRequest(
        dataset_uri="file:///d", continue_uri="file:///c", config=inherit(pb.TrainConfig(steps=200), continued)
    )
    request.config.ClearField("warmup_steps")
    assert resolve_training_config(request, 1, 1) == continued


def test_configurations_of_earlier_versions_are_read():
    """Their names of fields, and 0 for no limit."""
    current = options(train_request(clip_norm=0.0, spike_factor=0.0))
    names = {current: earlier for earlier, current in CONFIG_NAMES.items()}
    earlier = {
        names.get(name, name): value for name, value in current.to_json().items() if name not in ("lora", "recipe")
    }
    earlier |= {name: 0 for name, value in earlier.items() if value is None}
    assert ResolvedTrainingConfig.from_json(json.loads(json.dumps(earlier))) == current


def test_names_in_code_are_those_of_the_rules():
    def allowed(message, name):
        return tuple(rules_of(message.DESCRIPTOR.fields_by_name[name]).text.one_of)

    assert allowed(pb.TrainModelRequest, "model_size") == allowed(pb.ImportCheckpointRequest, "openai_model")
    assert set(allowed(pb.TrainModelRequest, "model_size")) == set(OFFICIAL_NAMES)
    assert allowed(pb.LoraConfig, "targets") == TARGETS
    for name, names in (
        ("optimizer", OptimizerName),
        ("schedule", ScheduleName),
        ("cooldown", CooldownName),
        ("weight_decay_schedule", WeightDecayScheduleName),
        ("precision", Precision),
    ):
        assert allowed(pb.TrainConfig, name) == get_args(names)
    assert allowed(pb.TrainConfig, "recipe") == (AUTO, *get_args(RecipeName))
