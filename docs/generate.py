"""Writes the reference pages of the documentation from the code, and checks that they are what the code gives.

python docs/generate.py            write api.md, commands.md, configuration.md and memory.md anew
python docs/generate.py --check    fail where one of them is out of date
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

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

from gpt2_common.settings import PREFIX, ServiceSettings
from gpt2_orchestration.commands.configuration import VARIABLES
from gpt2_trainer.configuration.architecture import PRESETS, Architecture
from gpt2_trainer.configuration.lora import LoraOptions
from gpt2_trainer.configuration.training import Precision, TrainingOptions
from gpt2_trainer.memory import estimate_memory

DOCUMENTATION = Path(__file__).parent
PROTOS = DOCUMENTATION.parent / "protos"
PRECISIONS: Sequence[Precision] = ("float32", "bfloat16")
SERVICES = ("exporter", "tokenizer", "trainer", "registry")

# Numbers of fields in descriptor.proto, of which paths of source locations are made.
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
    """Every variable of the services and of the command."""
    settings = {name: _settings_of(name) for name in SERVICES}
    shared = list(ServiceSettings.model_fields)
    parts = [
        "# Configuration\n",
        "A service is set up by environment variables, read once at start; a value that is wrong ends the start with a",
        "message that names the variable. A secret can be a file in the folder that `GPT2_SECRETS_DIR` names instead,",
        "named as its variable in lower case. The `gpt2` command reads the variables of the last table from the",
        "environment and from a TOML file; `gpt2 config` shows what holds.\n",
        "## Every service\n",
        _table(("variable", "default", "meaning"), _variables(ServiceSettings, shared)),
    ]
    for name, kind in settings.items():
        own = [field for field in kind.model_fields if field not in shared]
        parts += [f"\n## {name.capitalize()}\n", _table(("variable", "default", "meaning"), _variables(kind, own))]
    parts += [
        "\n## The command\n",
        "An option comes before the variable, the variable before the file, the file before what a stack that runs in",
        "`.gpt2` of the current folder says of itself; the default comes last. The file is that of `--config` or",
        "`GPT2_CONFIG`, else `gpt2.toml` in the current folder, else `gpt2/config.toml` in",
        "`$XDG_CONFIG_HOME` or `~/.config`. A key of it is a variable without `GPT2_`, in lower case:",
        '`trainer_address = "gpu.example:50053"`. It may have the settings of the services above too: `gpt2 stack up`',
        "gives them to the services that it starts.\n",
        _table(
            ("variable", "default", "meaning"),
            [(f"`{item.name}`", _code(item.default), item.meaning) for item in VARIABLES],
        ),
    ]
    return _page(parts)


def commands_page() -> str:
    """Every command with its options, as its `--help` has them."""
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "typer", "gpt2_orchestration.cli", "utils", "docs", "--name", "gpt2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    text = done.stdout.replace("# `gpt2`", "# Commands", 1)
    return _page([re.sub(r"\n{3,}", "\n\n", text).strip()])


def api_page() -> str:
    """Every service, message and field, with the comments of the .proto files."""
    parts = [
        "# API\n",
        "The gRPC interfaces, from the comments of [protos/gpt2](../protos/gpt2). Every service serves",
        "`gpt2.jobs.v1.JobsService` beside its own interface, health and reflection.\n",
    ]
    for file in _descriptors():
        if not file.name.startswith("gpt2/"):
            continue
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for number, service in enumerate(file.service):
            parts += _service(file.package, service, comments, (_SERVICE, number))
        for number, message in enumerate(file.message_type):
            parts += _message(f"{file.package}.{message.name}", message, comments, (_MESSAGE, number))
        for number, enum in enumerate(file.enum_type):
            parts += _enum(f"{file.package}.{enum.name}", enum, comments, (_ENUM, number))
    return _page(parts)


def memory_page() -> str:
    """What a training needs of its device, by size of the model and by what saves memory."""
    saving: dict[str, dict[str, Any]] = {
        "AdamW": {},
        "with `memory_saving_gradients`": {"memory_saving_gradients": True},
        "and with `optimizer: adafactor`": {"memory_saving_gradients": True, "optimizer": "adafactor"},
        "or with `lora: {rank: 8}`": {"memory_saving_gradients": True, "lora": LoraOptions()},
    }
    rows = [
        (size, precision, *(_gibibytes(size, precision, changes) for changes in saving.values()))
        for precision in PRECISIONS
        for size in ("124M", "355M", "774M", "1558M")
    ]
    parts = [
        "# Memory of a training\n",
        "GiB that a training needs of a GPU, as the trainer estimates it before it takes a job: a context of 1024",
        "tokens, OpenAI's vocabulary, `micro_batch_size: 1` (more in `batch_size` costs time alone). A job that does",
        "not fit is refused with what would. The estimate was held against the measured peak of small trainings on",
        "CPUs, which was 1.0 to 1.3 of it; on GPUs it has not been measured.\n",
        _table(("size", "precision", *saving), rows),
    ]
    return _page(parts)


def _gibibytes(size: str, precision: Precision, changes: Mapping[str, Any]) -> str:
    options = TrainingOptions(
        steps=1,
        batch_size=8,
        accumulate_gradients=8,
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


def _message(name: str, message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    rows = [
        (f"`{field.name}`", _type(field, entries), _one_line(_comment(comments, (*path, _FIELD, number))))
        for number, field in enumerate(message.field)
    ]
    yield f"\n## {name}\n\n{_comment(comments, path)}\n"
    if rows:
        yield _table(("field", "type", "meaning"), rows)
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
    """Writes or checks the pages. Returns the exit status."""
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
