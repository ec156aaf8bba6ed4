"""What is wrong with a request, beyond the rules of its fields: lists of pairs of field and description.

Opens nothing and imports no framework. `admission.py` checks a training once the sizes of its inputs are known.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest, violations_of
from gpt2_common.hub import SCHEME, HubAddress
from gpt2_rules import violations
from gpt2_trainer.configuration.recipes import AUTO, with_recipe
from gpt2_trainer.configuration.resolution import TrainingSizes, new_layer_sizes, resolve_sizes
from gpt2_trainer.configuration.training import OPTIMIZERS_WITH_WEIGHT_DECAY, Problems

AllowCheck = Callable[[str, str], str]

# Fields that are checked together, once each of them keeps its rules.
_SIZES = frozenset(
    f"config.{name}"
    for name in (
        "steps",
        "batch_size",
        "gradient_accumulation_steps",
        "context_length",
        "warmup_steps",
        "cooldown_steps",
        "embeddings_only_steps",
        "epochs",
        "batch_tokens",
        "micro_batch_size",
        "devices",
        "model_devices",
        "num_nodes",
    )
)
_ADAMS = ("adamw", "adam", "muon")
_OPTIMIZERS_OF: Mapping[str, tuple[str, ...]] = {
    "weight_decay": OPTIMIZERS_WITH_WEIGHT_DECAY,
    "weight_decay_schedule": OPTIMIZERS_WITH_WEIGHT_DECAY,
    "beta1": _ADAMS,
    "beta2": _ADAMS,
    "epsilon": _ADAMS,
    "momentum": ("sgd", "muon"),
}


def train_problems(request: pb.TrainModelRequest) -> Problems:
    """What is wrong with a request for a training, as far as it alone tells, apart from the rules of its fields."""
    config, start = request.config, request.WhichOneof("start")
    broken = {path for path, _ in violations(request)}
    found = _exclusive_fields(config)
    if config.recipe not in ("", AUTO) and start in ("checkpoint_uri", "continue_uri"):
        text = (
            f"{config.recipe!r} is for new models: leave it out, or start with model or model_size in place of {start}"
        )
        found.append(("config.recipe", text))
    # Most defaults, and with them what fits together, come from the training that is continued.
    if start == "continue_uri":
        return found
    # What `auto` chooses, and so what fits together, is known at admission.
    if not {"config.optimizer", "config.recipe"} & broken and config.recipe != AUTO:
        found += option_problems(with_recipe(config, config.recipe))
    layers = None
    if not any(path.startswith("model") for path in broken) and (layers := new_layer_sizes(request)):
        found += [(f"model.{name}", description) for name, description in layers.problems()]
    if broken & _SIZES:
        return found
    found += embeddings_only_problems(config, config.steps or None)
    reported = {field for field, _ in found}
    sizes = size_problems(config, layers.n_ctx if layers else None, None)
    return found + [(field, description) for field, description in sizes if field not in reported]


def size_problems(config: pb.TrainConfig, n_ctx: int | None, train_tokens: int | None) -> Problems:
    """Whether the sizes of a training fit together, as far as they are known; each keeps the rules of its field.

    Args:
        config: The request's configuration, with what it inherits.
        n_ctx: Positions of the model; None: not known yet.
        train_tokens: Tokens in the train split; None: not known yet.
    """
    sizes = resolve_sizes(config, n_ctx, train_tokens)
    found = _batch_problems(config, sizes) or _device_problems(config, sizes)
    if sizes.steps is not None and config.warmup_steps > sizes.steps:
        found.append(("config.warmup_steps", f"must be at most the {sizes.steps} steps of the training"))
    elif sizes.steps is not None and config.cooldown_steps > sizes.steps - max(0, config.warmup_steps):
        text = f"and warmup_steps must be at most the {sizes.steps} steps of the training together"
        found.append(("config.cooldown_steps", text))
    if n_ctx is not None and config.context_length > n_ctx:
        found.append(("config.context_length", f"must be at most {n_ctx}, the positions that the model has"))
    return found


def embeddings_only_problems(config: pb.TrainConfig, steps: int | None) -> Problems:
    """Whether a training that continues no other has the steps in which it trains the embeddings alone.

    Args:
        config: The request's configuration.
        steps: Updates of the training; None: not known yet.
    """
    if steps is None or config.embeddings_only_steps <= steps:
        return []
    return [("config.embeddings_only_steps", f"must be at most the {steps} steps of the training")]


def option_problems(config: pb.TrainConfig) -> Problems:
    """Whether options are given that the optimizer or the schedule does not have; with the defaults of the recipe."""
    found = optimizer_problems(config, config.optimizer or "adamw")
    if config.schedule != "wsd":
        given = (name for name in ("cooldown_steps", "cooldown") if getattr(config, name))
        found += [(f"config.{name}", "goes with the schedule wsd only") for name in given]
    return found


def optimizer_problems(config: pb.TrainConfig, optimizer: str) -> Problems:
    """Whether options are given that an optimizer does not have."""
    found: Problems = []
    given = {field.name for field, _ in config.ListFields()}
    for name, optimizers in _OPTIMIZERS_OF.items():
        if name in given and optimizer not in optimizers:
            allowed = " and ".join((", ".join(optimizers[:-1]), optimizers[-1]))
            found.append((f"config.{name}", f"goes with the optimizer {allowed} only, not with {optimizer!r}"))
    return found


def backend_problems(request: pb.TrainModelRequest, backend: str) -> Problems:
    """Whether a backend of Keras can train on as many devices and nodes as the request asks for."""
    several = [name for name in ("devices", "model_devices", "num_nodes") if getattr(request.config, name) > 1]
    if not several or backend != "tensorflow":
        return []
    what = "nodes" if several[0] == "num_nodes" else "devices"
    text = f"of several {what} needs Keras on JAX, and this service trains on {backend}: set KERAS_BACKEND=jax"
    return [(f"config.{several[0]}", text)]


def process_problems(request: pb.TrainModelRequest) -> Problems:
    """Whether a training, as a process beside the service, is asked for several nodes."""
    if request.config.num_nodes < 2:
        return []
    text = (
        f"is {request.config.num_nodes}, and this service trains in one process; leave it out, or start the service "
        "with GPT2_TRAINING_BACKEND=trainjob on a cluster with Kubeflow Trainer"
    )
    return [("config.num_nodes", text)]


def trainjob_problems(request: pb.TrainModelRequest, gpus: int, max_nodes: int) -> Problems:
    """Whether a TrainJob has as many nodes and GPUs as the request asks for.

    Args:
        request: The request.
        gpus: GPUs of each node; without any it has one device, its CPU.
        max_nodes: How many nodes a training may have; 0: any number.
    """
    if max_nodes and request.config.num_nodes > max_nodes:
        text = (
            f"must be at most {max_nodes}, not {request.config.num_nodes}; where the volume of TrainJobs' pods is "
            "ReadWriteMany, raise GPT2_TRAINJOB_MAX_NODES"
        )
        return [("config.num_nodes", text)]
    per_node, nodes = max(1, gpus), request.config.num_nodes or 1
    text = "must be at most {}: the service gives each node of a TrainJob GPT2_TRAINJOB_GPUS={}"
    if request.config.devices > per_node:
        return [("config.devices", text.format(per_node, gpus))]
    if request.config.model_devices > per_node * nodes:
        return [("config.model_devices", text.format(per_node * nodes, gpus))]
    return []


def import_problems(request: pb.ImportCheckpointRequest, require_allowed: AllowCheck) -> Problems:
    """What is wrong with a request for an import, apart from the rules of its fields.

    Args:
        request: The request.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    found = uri_problems(request, ("target_tokenizer_uri",), require_allowed)
    if request.transplant and not request.target_tokenizer_uri:
        advice = "name a tokenizer artifact, or add a stage before it that makes one, TrainTokenizer or ImportTokenizer"
        found.append(("target_tokenizer_uri", f"is required with transplant; {advice}"))
    if not request.uri:
        return found
    if wrong := _hub_problems(request.uri):
        return found + wrong
    uri = HubAddress.parse(request.uri).root if request.uri.startswith(SCHEME) else request.uri
    return found + violations_of(partial(require_allowed, "uri", uri))


def _hub_problems(uri: str) -> Problems:
    """Whether a hub's model is written as it is read: not as its id alone, or as the address of its page."""
    if uri.startswith(SCHEME):
        try:
            HubAddress.parse(uri)
        except InvalidRequest as error:
            return list(error.violations)
        return []
    found = re.fullmatch(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+)(/.*)?", uri)
    if found is None or (found[2] and not uri.startswith("http")):
        return []
    advice = f"write hf://{found[1]} for the model of the Hugging Face hub, or the absolute path of a folder"
    return [("uri", f"{uri!r} is no URI that is read: {advice}")]


def export_problems(request: pb.ExportModelRequest, require_allowed: AllowCheck) -> Problems:
    """What is wrong with a request for an export, apart from rules; arguments as of `import_problems`."""
    return uri_problems(request, ("checkpoint_uri", "tokenizer_uri"), require_allowed)


def evaluation_problems(request: pb.EvaluateModelRequest, require_allowed: AllowCheck) -> Problems:
    """What is wrong with a request for an evaluation, apart from rules; arguments as of `import_problems`."""
    found: Problems = []
    if not request.dataset_uri and not request.lambada_uri:
        found.append(("dataset_uri", "is required, or lambada_uri"))
    names = ("checkpoint_uri", "model_uri", "dataset_uri", "lambada_uri")
    return found + uri_problems(request, names, require_allowed)


def uri_problems(request: Any, names: Sequence[str], require_allowed: AllowCheck) -> Problems:
    """Whether the URIs in fields of a request, where they are set, are under the allowed roots."""
    set_names = [name for name in names if getattr(request, name)]
    checks = (partial(require_allowed, name, getattr(request, name)) for name in set_names)
    return [problem for check in checks for problem in violations_of(check)]


def generate_problems(request: pb.GenerateRequest) -> Problems:
    """What is wrong with a request for text, apart from the rules of its fields."""
    return [("prompts", "cannot be given with prompt; send either")] if request.prompts and request.prompt else []


def _exclusive_fields(config: pb.TrainConfig) -> Problems:
    """Whether fields are given that exclude each other."""
    found: Problems = []
    if bool(config.steps) == bool(config.epochs):
        found.append(("config.steps", "is required, or epochs" if not config.steps else "goes without epochs"))
    for first, second in (("batch_size", "batch_tokens"), ("gradient_accumulation_steps", "micro_batch_size")):
        if getattr(config, first) and getattr(config, second):
            found.append((f"config.{second}", f"goes without {first}"))
    if config.HasField("lora") and config.only_train_transformer_layers:
        found.append(("config.only_train_transformer_layers", "goes without lora, which trains no other weights"))
    if config.embeddings_only_steps and config.HasField("lora"):
        found.append(("config.embeddings_only_steps", "goes without lora, which never trains the embeddings"))
    elif config.embeddings_only_steps and config.only_train_transformer_layers:
        text = "goes without only_train_transformer_layers, which never trains the embeddings"
        found.append(("config.embeddings_only_steps", text))
    return found


def _batch_problems(config: pb.TrainConfig, sizes: TrainingSizes) -> Problems:
    """Whether batches divide into sequences and micro-batches."""
    length, batch = sizes.context_length, sizes.batch_size
    if config.batch_tokens and length and config.batch_tokens % length:
        below = max(length, config.batch_tokens // length * length)
        return [("config.batch_tokens", f"must be a multiple of the context_length {length}: {below} would be one")]
    if batch is None:
        return []
    micro, accumulation = config.micro_batch_size, config.gradient_accumulation_steps
    if micro and batch % micro:
        given, fits = "batch_tokens" if config.batch_tokens else "batch_size", _max_divisor(batch, micro)
        text = f"must divide the {batch} sequences that {given} makes an update of: {fits} would"
        return [("config.micro_batch_size", text)]
    if accumulation and batch % accumulation:
        text = f"must divide batch_size, which is {batch}: {_max_divisor(batch, accumulation)} would"
        return [("config.gradient_accumulation_steps", text)]
    return []


def _device_problems(config: pb.TrainConfig, sizes: TrainingSizes) -> Problems:
    """Whether devices of all nodes divide into copies of the model, and micro-batches into those."""
    nodes, model_devices = config.num_nodes or 1, config.model_devices or 1
    if not config.devices and (nodes == 1 or model_devices > 1):
        # How many devices there are is known where it trains.
        return []
    devices = (config.devices or 1) * nodes
    if devices % model_devices:
        of_nodes = f" on {nodes} nodes" if nodes > 1 else ""
        return [("config.model_devices", f"must divide devices, which is {devices}{of_nodes}")]
    if sizes.batch_size is None or sizes.gradient_accumulation_steps is None:
        return []
    copies, sequences = devices // model_devices, sizes.batch_size // sizes.gradient_accumulation_steps
    if sequences % copies:
        field = "devices" if config.devices else "num_nodes"
        text = f"have {copies} copies of the model, which do not divide the {sequences} sequences at once"
        return [(f"config.{field}", text)]
    return []


def _max_divisor(number: int, limit: int) -> int:
    """The greatest divisor of a number that is at most a limit; both are at least 1."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return max(n for n in (*small, *(number // n for n in small)) if n <= limit)
