"""Generates the reference pages of the documentation from the code.

python docs/generate.py            writes api.md, commands.md, configuration.md and memory.md
python docs/generate.py --check    fails if one of them is out of date
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.rpc import status_pb2
from pydantic import SecretStr
from typer.cli import get_docs_for_click
from typer.core import MARKUP_MODE_KEY

from gpt2_catalogue import Stage, catalogue
from gpt2_common.settings import PREFIX, ServiceSettings
from gpt2_orchestration.cli import app
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.commands.command_groups import load_commands
from gpt2_orchestration.commands.configuration import VARIABLES
from gpt2_rules import describe, is_required
from gpt2_rules.reading import rules_of
from gpt2_trainer.configuration.architecture import PRESETS, Architecture
from gpt2_trainer.configuration.training import LoraConfig, Precision, ResolvedTrainingConfig
from gpt2_trainer.memory import estimate_memory

DOCUMENTATION = Path(__file__).parent
PROTOS = DOCUMENTATION.parent / "protos"
PRECISIONS: Sequence[Precision] = ("float32", "bfloat16")

# Field numbers of descriptor.proto, which make up the paths of source locations.
_MESSAGE, _ENUM, _SERVICE, _METHOD, _FIELD, _NESTED, _NESTED_ENUM, _VALUE = 4, 5, 6, 2, 2, 3, 4, 2

Comments = Mapping[tuple[int, ...], str]


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {
        "api.md": api_page(),
        "commands.md": commands_page(),
        "configuration.md": configuration_page(),
        "memory.md": memory_page(),
    }


def configuration_page() -> str:
    """Page of the environment variables of the services and of the command."""
    settings = {name: _settings_of(name) for name in DEFAULT_PORTS}
    shared = list(ServiceSettings.model_fields)
    parts = [
        "# Configuration\n",
        "Services are configured by environment variables, which are read once at start; an invalid value ends the",
        "start with a message that names the variable. A secret can also be a file in the folder `GPT2_SECRETS_DIR`,",
        "named as its variable in lower case. The `gpt2` command reads the variables of the last table from the",
        "environment and from a TOML file; `gpt2 config` shows the values.\n",
        "## Every service\n",
        _table(("variable", "default", "meaning"), _variables(ServiceSettings, shared)),
    ]
    for name, kind in settings.items():
        own = [field for field in kind.model_fields if field not in shared]
        parts += [f"\n## {name.capitalize()}\n", _table(("variable", "default", "meaning"), _variables(kind, own))]
    parts += [
        "\n## The command\n",
        "The order of precedence is: option, variable, file, the stack that runs in `.gpt2` of the current folder,",
        "default. The file is that of `--config` or `GPT2_CONFIG`, else `gpt2.toml` in the current folder, else",
        "`gpt2/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`. Keys are variables without `GPT2_`, in lower case:",
        '`trainer_address = "gpu.example:50053"`. It may have the settings of the services above too: `gpt2 stack up`',
        "gives them to the services that it starts.\n",
        _table(
            ("variable", "default", "meaning"),
            [(f"`{item.name}`", _code(item.default), item.meaning) for item in VARIABLES],
        ),
    ]
    return _page(parts)


def commands_page() -> str:
    """Page of the commands, with the text of their `--help`."""
    commands = load_commands(app)
    # Rich escapes what Markdown would take for HTML, such as <SERVICE>.
    context = typer.Context(commands, obj={MARKUP_MODE_KEY: "rich"})
    text = get_docs_for_click(obj=commands, ctx=context, name="gpt2", title="Commands")
    return _page([re.sub(r"\n{3,}", "\n\n", text).strip()])


def api_page() -> str:
    """Page of all services, messages and fields, with the comments of the .proto files."""
    parts = [
        "# API\n",
        "The gRPC interfaces, from the comments of [protos/gpt2](../protos/gpt2). Every service serves",
        "`gpt2.jobs.v1.JobsService` beside its own interface, health and reflection.\n",
        "The column *rules* shows which fields of a request are required, and the limits of fields that are set. A",
        "request that violates a rule is rejected with INVALID_ARGUMENT.\n",
    ]
    for file in _descriptors():
        if not file.name.startswith("gpt2/"):
            continue
        # Makes its messages known, for their rules.
        importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for number, service in enumerate(file.service):
            parts += _service(file.package, service, comments, (_SERVICE, number))
        for number, message in enumerate(file.message_type):
            parts += _message(f"{file.package}.{message.name}", message, comments, (_MESSAGE, number))
        for number, enum in enumerate(file.enum_type):
            parts += _enum(f"{file.package}.{enum.name}", enum, comments, (_ENUM, number))
    return _page(parts)


def memory_page() -> str:
    """Page of the estimated device memory of a training, by model size and memory-saving option."""
    saving: dict[str, dict[str, Any]] = {
        "AdamW": {},
        "with `gradient_checkpointing`": {"gradient_checkpointing": True},
        "and with `optimizer: adafactor`": {"gradient_checkpointing": True, "optimizer": "adafactor"},
        "or with `lora: {rank: 8}`": {"gradient_checkpointing": True, "lora": LoraConfig()},
    }
    rows = [
        (size, precision, *(_gibibytes(size, precision, changes) for changes in saving.values()))
        for precision in PRECISIONS
        for size in ("124M", "355M", "774M", "1558M")
    ]
    parts = [
        "# Memory of a training\n",
        "GPU memory of a training in GiB, as the trainer estimates it before it accepts a job: context of 1024 tokens,",
        "OpenAI's vocabulary, `micro_batch_size: 1` (a larger `batch_size` takes time, not memory). A job that does",
        "not fit is rejected with settings that do. The measured peak of small trainings on CPUs was 1.0 to 1.3 of the",
        "estimate; on GPUs it has not been measured.\n",
        _table(("size", "precision", *saving), rows),
    ]
    return _page(parts)


def _gibibytes(size: str, precision: Precision, changes: Mapping[str, Any]) -> str:
    options = ResolvedTrainingConfig(
        steps=1,
        batch_size=8,
        gradient_accumulation_steps=8,
        context_length=1024,
        learning_rate=1e-4,
        validate_every=1,
        save_every=1,
        precision=precision,
    )
    architecture = Architecture(layers=PRESETS[size], vocabulary_size=50257, end_token_id=50256)
    return f"{estimate_memory(architecture, replace(options, **changes), on_host=False).total / 2**30:.1f}"


def _descriptors() -> Sequence[FileDescriptorProto]:
    includes = [PROTOS, files("grpc_tools") / "_proto", Path(status_pb2.__file__).parents[2]]
    names = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "gpt2").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "descriptors"
        options = [f"-I{include}" for include in includes] + [f"-o{target}", "--include_source_info"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *names], check=True)
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


def _service(package: str, service: ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n## {package}.{service.name}\n\n{_comment(comments, path)}\n"
    for number, method in enumerate(service.method):
        stream = "stream of " if method.server_streaming else ""
        yield f"### {method.name}\n\n`{_last(method.input_type)}` → {stream}`{_last(method.output_type)}`\n"
        yield _comment(comments, (*path, _METHOD, number)) + "\n"
        if stage := catalogue().stages.get(method.name):
            yield _artifacts(stage)


def _artifacts(stage: Stage) -> str:
    """Inputs and outputs of a start call."""
    inputs = [
        f"`{item.field}` ({item.kind}{'' if item.required else ', optional'}"
        + ("" if item.only_from_request else f"; default: `{item.name}` of an earlier stage of the run")
        + (f", where `{item.only_if}` is set" if item.only_if else "")
        + ")"
        for item in stage.inputs
    ]
    outputs = [f"`{item.name}`{' (optional)' if item.optional else ''}" for item in stage.outputs]
    read = f"Reads the artifacts in {', '.join(inputs)}. " if inputs else ""
    return f"{read}Makes {', '.join(outputs)}.\n"


def _message(name: str, message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    rows = [
        (
            f"`{field.name}`",
            _type(field, entries),
            _rules(name, field.name),
            _one_line(_comment(comments, (*path, _FIELD, number))),
        )
        for number, field in enumerate(message.field)
    ]
    yield f"\n## {name}\n\n{_comment(comments, path)}\n"
    if any(rule for _, _, rule, _ in rows):
        yield _table(("field", "type", "rules", "meaning"), rows)
    elif rows:
        yield _table(("field", "type", "meaning"), [(field, kind, meaning) for field, kind, _, meaning in rows])
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(f"{name}.{nested.name}", nested, comments, (*path, _NESTED, number))
    for number, enum in enumerate(message.enum_type):
        yield from _enum(f"{name}.{enum.name}", enum, comments, (*path, _NESTED_ENUM, number))


def _enum(name: str, enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n## {name}\n\n{_comment(comments, path)}\n"
    rows = [
        (f"`{value.name}`", _one_line(_comment(comments, (*path, _VALUE, number))))
        for number, value in enumerate(enum.value)
    ]
    yield _table(("value", "meaning"), rows)


def _type(field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
    name = _last(field.type_name)
    if name in entries:
        key, value = entries[name].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    word = name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return ("repeated " if repeated else "") + word


def _rules(message: str, name: str) -> str:
    """Limits of a field, and whether it, or a field of its oneof, is required."""
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]  # protobuf's own function
    field = pool.FindMessageTypeByName(message).fields_by_name[name]
    # Enums say in their own tables which values there are.
    parts = [describe(field)] if rules_of(field).ByteSize() and field.enum_type is None else []
    oneof = field.containing_oneof
    if oneof is not None and len(oneof.fields) > 1:
        parts.append(f"one of `{oneof.name}`" + (", which is required" if is_required(oneof) else ""))
    elif is_required(field):
        parts.insert(0, "required")
    return "; ".join(filter(None, parts))


def _comment(comments: Comments, path: tuple[int, ...]) -> str:
    return "\n".join(line.removeprefix(" ") for line in comments.get(path, "").rstrip().split("\n"))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _settings_of(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"gpt2_{service}.settings")
    kind: type[ServiceSettings] = getattr(module, f"{service.capitalize()}Settings")
    return kind


def _variables(kind: type[ServiceSettings], names: Sequence[str]) -> list[tuple[str, str, str]]:
    fields = ((name, kind.model_fields[name]) for name in names)
    return [
        (
            f"`{PREFIX}{name.upper()}`",
            _code(_default(field.default)),
            str(field.description),
        )
        for name, field in fields
    ]


def _default(value: object) -> str:
    # The default of a secret is none.
    return "" if value is None else value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [tuple(columns), ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _page(parts: Sequence[str]) -> str:
    return "\n".join(parts).rstrip() + "\n"


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the pages.

    Args:
        arguments: `--check`, or none.

    Returns:
        The exit status: 1 if a page is out of date.
    """
    stale = []
    for name, text in pages().items():
        path = DOCUMENTATION / name
        if arguments == ["--check"]:
            stale += [name] if not path.exists() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}: run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
