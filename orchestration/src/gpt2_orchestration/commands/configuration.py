"""What the `gpt2` command is told besides its options: variables of the environment, and a TOML file under them.

A key of the file is a variable without `GPT2_`, in lower case: `trainer_address = "gpu.example:50053"`. An option of a
command comes before the variable, the variable before the file, and that before what the stack that runs in this
checkout says of itself; the default comes last. The file is the one of
`--config` or GPT2_CONFIG, else `gpt2.toml` in the current folder, else `gpt2/config.toml` in the user's configuration
folder. What it says also holds for the services that `gpt2 stack up` starts.
"""

import difflib
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.client import ClientSettings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json, print_table
from gpt2_orchestration.stack.control import running_record
from gpt2_orchestration.stack.discovery import FOLDER_VARIABLE, USUAL_FOLDER, SeveralStacks, choose_stack, find_stacks

PREFIX = "GPT2_"
FILE_VARIABLE = "GPT2_CONFIG"

_OF_THE_STACK = (
    *((f"GPT2_{service.upper()}_ADDRESS", service, "") for service in DEFAULT_PORTS),
    ("GPT2_KAFKA_BOOTSTRAP_SERVERS", "kafka", ""),
    ("GPT2_MLFLOW_TRACKING_URI", "mlflow", "http://"),
    ("GPT2_MONGODB_URI", "mongodb", "mongodb://"),
    ("GPT2_TENSORBOARD_URI", "tensorboard", "http://"),
    ("GPT2_DASHBOARD_TENSORBOARD_LINK", "tensorboard", "http://"),
    ("GPT2_DASHBOARD_MLFLOW_LINK", "mlflow", "http://"),
)
SERVICE_VARIABLES = tuple(f"GPT2_{service.upper()}_ADDRESS" for service in DEFAULT_PORTS)
KAFKA_VARIABLES = ("GPT2_KAFKA_BOOTSTRAP_SERVERS",)
_CONNECTION = re.compile(r"mongodb_uri_[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """A variable that the command reads."""

    name: str
    meaning: str
    default: str = ""
    secret: bool = False


VARIABLES: Sequence[Variable] = (
    *(
        Variable(name=f"GPT2_{service.upper()}_ADDRESS", meaning=f"where the {service} is", default=f"localhost:{port}")
        for service, port in DEFAULT_PORTS.items()
    ),
    Variable(name="GPT2_CLIENT_TOKEN", meaning="bearer token for the services", secret=True),
    Variable(name="GPT2_CLIENT_CA_FILE", meaning="PEM authorities of the services; turns TLS on"),
    Variable(name="GPT2_CLIENT_CERTIFICATE_FILE", meaning="PEM certificate to show them, for mutual TLS"),
    Variable(name="GPT2_CLIENT_KEY_FILE", meaning="PEM private key of that certificate"),
    Variable(name="GPT2_KAFKA_BOOTSTRAP_SERVERS", meaning="Kafka brokers", default="localhost:9092"),
    Variable(name="GPT2_MLFLOW_TRACKING_URI", meaning="MLflow's server, for `doctor`", default="http://localhost:5000"),
    Variable(
        name="GPT2_MONGODB_URI", meaning="MongoDB, for `doctor`", default="mongodb://localhost:27017", secret=True
    ),
    Variable(name="GPT2_KAFKA_TOPIC", meaning="topic of the events", default="gpt2.stage-events.v1"),
    Variable(
        name="GPT2_TENSORBOARD_URI",
        meaning="where TensorBoard shows the artifacts, for `dashboard`",
        default="http://localhost:6006",
    ),
    Variable(name="GPT2_DASHBOARD_LISTEN", meaning="where `dashboard` serves", default="127.0.0.1:8090"),
    Variable(name="GPT2_DASHBOARD_HOSTS", meaning="further names of it that browsers may use, separated by commas"),
    Variable(name="GPT2_DASHBOARD_TENSORBOARD_LINK", meaning="where browsers find TensorBoard; none: no link"),
    Variable(name="GPT2_DASHBOARD_MLFLOW_LINK", meaning="where browsers find MLflow; none: no link"),
    Variable(name=FOLDER_VARIABLE, meaning="folder of the stack to use, as with --stack"),
    Variable(name="GPT2_ON_INTERRUPT", meaning="what becomes of a job on Ctrl-C: cancel or leave", default="cancel"),
    Variable(name="GPT2_DEBUG", meaning="set: errors say where in the code they come from, as with --debug"),
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a file and the environment say.

    Args:
        file: The file that was read; None where there is none.
        environment: The variables that were set, without what the file says.
        content: What the file says, by variable.
        stack: What the stack that is used says, by variable.
        stack_folder: Its folder; None where none runs.
        notice: What to say of the choice of the stack; empty: nothing.
        problem: Why no stack could be chosen; empty: nothing.
    """

    file: Path | None
    environment: Mapping[str, str]
    content: Mapping[str, str]
    stack: Mapping[str, str]
    stack_folder: Path | None = None
    notice: str = ""
    problem: str = ""

    @classmethod
    def read(
        cls, chosen: Path | None, environment: Mapping[str, str], stack_folder: Path | None = None
    ) -> "Configuration":
        """Finds and reads the file. Raises UsageError when it is wrong, or chosen and not there."""
        file = chosen or next((path for path in _usual_places(environment) if path.is_file()), None)
        content = {} if file is None else _read(file)
        folder, notice, problem = _choose_stack(stack_folder)
        return cls(file, dict(environment), content, {} if folder is None else _stack(folder), folder, notice, problem)

    def of_stack(self, folder: Path) -> "Configuration":
        """The same with the stack of a folder, and sets the variables of this process by it."""
        stack_folder, notice, problem = _choose_stack(folder)
        stack = {} if stack_folder is None else _stack(stack_folder)
        other = replace(self, stack=stack, stack_folder=stack_folder, notice=notice, problem=problem)
        for name in self.stack:
            if name not in self.environment and name not in self.content:
                os.environ.pop(name, None)
        other.apply()
        return other

    def announce(self, variables: Sequence[str]) -> None:
        """Says on standard error whom a command speaks with, where no variable or file says it and it is not obvious.

        Args:
            variables: Those that the command goes by; one that is set says enough.

        Raises:
            StackError: Several stacks run, and there is no telling which is meant.
        """
        if any(self.environment.get(name) or name in self.content for name in variables):
            return
        if self.problem:
            raise SeveralStacks(self.problem)
        if self.notice:
            print(f"gpt2: {self.notice}", file=sys.stderr)
        if self.stack_folder is None:
            first = next(item for item in VARIABLES if item.name == variables[0])
            where = f"using the default address {first.default}: no stack is running in {Path.cwd()}"
            print(f"gpt2: {where}; `gpt2 stack up` starts one, or set {first.name}", file=sys.stderr)
        elif self.stack_folder != Path.cwd() / USUAL_FOLDER:
            print(f"gpt2: using the stack in {self.stack_folder}", file=sys.stderr)

    def apply(self) -> None:
        """Becomes the command's configuration: sets the variables that the file or the stack alone sets."""
        _current.set(self)
        of_stack = dict(self.stack)
        if any(self.environment.get(name) or name in self.content for name in KAFKA_VARIABLES):
            # Another broker has its own topics.
            of_stack.pop("GPT2_KAFKA_TOPIC", None)
        for name, value in {**of_stack, **self.content}.items():
            if not os.environ.get(name):
                os.environ[name] = value

    def value(self, variable: Variable) -> tuple[str, str]:
        """Value of a variable, and where it comes from."""
        if self.environment.get(variable.name):
            return self.environment[variable.name], "environment"
        if variable.name in self.content:
            return self.content[variable.name], str(self.file)
        if variable.name in self.stack:
            return self.stack[variable.name], f"stack in {self.stack_folder}"
        return variable.default, "default"

    def further(self) -> Iterator[Variable]:
        """Variables of the file that are the services'."""
        known = {variable.name for variable in VARIABLES}
        secrets = re.compile("TOKEN|PASSWORD|SECRET|MONGODB_URI|DATABASE_URL")
        for name in sorted(set(self.content) - known):
            yield Variable(name=name, meaning="for the services of `gpt2 stack up`", secret=bool(secrets.search(name)))


_current: ContextVar[Configuration] = ContextVar("configuration")


@shows_errors
def config(context: typer.Context, json: JsonOption = False) -> None:
    """Show the configuration, and where each value comes from."""
    configuration: Configuration = context.find_root().obj
    shown = []
    for variable in (*VARIABLES, *configuration.further()):
        value, source = configuration.value(variable)
        shown.append(
            (variable.name, "(secret)" if variable.secret and source != "default" else value, source, variable.meaning)
        )
    if json:
        print_json([dict(zip(("name", "value", "source", "meaning"), row, strict=True)) for row in shown])
    else:
        file = str(configuration.file or "none; gpt2.toml in this folder would be one")
        print_table(("variable", "value", "from", "meaning"), shown, f"file: {file}")


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar=FILE_VARIABLE, help="TOML file with settings. Default: gpt2.toml, where there is one."
    ),
]


def _usual_places(environment: Mapping[str, str]) -> Iterator[Path]:
    yield Path("gpt2.toml")
    home = environment.get("XDG_CONFIG_HOME") or (f"{environment['HOME']}/.config" if environment.get("HOME") else "")
    if home:
        yield Path(home) / "gpt2" / "config.toml"


def client_settings() -> ClientSettings:
    """Where the services are; says it where it is not obvious. Raises StackError when there is no telling."""
    current_configuration().announce(SERVICE_VARIABLES)
    return ClientSettings.from_environment(os.environ)


def current_configuration() -> Configuration:
    """The configuration of the command that runs."""
    return _current.get()


def _choose_stack(folder: Path | None) -> tuple[Path | None, str, str]:
    """The stack to use, a notice, and a problem."""
    if folder is not None:
        absolute = folder.absolute()
        return (absolute, "", "") if running_record(absolute) else (None, f"no stack is running in {absolute}", "")
    try:
        return *choose_stack(find_stacks(Path.cwd())), ""
    except SeveralStacks as error:
        return None, "", str(error)


def _stack(folder: Path) -> dict[str, str]:
    """Where the processes of a stack are: at other ports, where the usual ones were taken."""
    record = running_record(folder)
    if record is None:
        return {}
    addresses = {process.name: process.address for process in record.processes if process.address}
    values = {name: f"{scheme}{addresses[process]}" for name, process, scheme in _OF_THE_STACK if process in addresses}
    return {**values, **({"GPT2_KAFKA_TOPIC": record.kafka_topic} if record.kafka_topic else {})}


def _read(file: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    names = {variable.name.removeprefix(PREFIX).lower() for variable in VARIABLES}
    if set(content) - names:
        names |= _service_settings()
    return {PREFIX + key.upper(): _text(file, key, value, names) for key, value in content.items()}


def _text(file: Path, key: str, value: Any, names: set[str]) -> str:
    if key not in names and not _CONNECTION.fullmatch(key):
        near = difflib.get_close_matches(key, names, 1)
        hint = f"; {near[0]} is" if near else ": a key is a variable without GPT2_, in lower case"
        raise UsageError(f"{file}: {key} is no setting{hint}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if not isinstance(value, str | int | float):
        raise UsageError(f"{file}: {key} must be a text, a number, true, false or a list of texts")
    return str(value)


def _service_settings() -> set[str]:
    """Names of all settings of the services that are installed here."""
    names: set[str] = set()
    for service in DEFAULT_PORTS:
        try:
            module = importlib.import_module(f"gpt2_{service}.settings")
        except ModuleNotFoundError:
            continue
        names |= set(getattr(module, f"{service.capitalize()}Settings").model_fields)
    return names
