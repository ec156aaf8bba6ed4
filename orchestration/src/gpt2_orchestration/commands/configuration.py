"""The configuration of the `gpt2` command: options, environment variables, a TOML file, the running stack, defaults.

That is the order of precedence. The file is that of `--config` or GPT2_CONFIG, else `gpt2.toml` in the current folder,
else `gpt2/config.toml` in the user's configuration folder; its keys are variables without `GPT2_`, in lower case. It
also applies to the services that `gpt2 stack up` starts.
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
from typing import Any

from gpt2_contracts.events import DEFAULT_TOPIC
from gpt2_orchestration.client.addresses import DEFAULT_PORTS, address_variable
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.commands.errors import UsageError
from gpt2_orchestration.stack import FOLDER_VARIABLE
from gpt2_orchestration.stack.discovery import USUAL_FOLDER, SeveralStacks, choose_stack, find_stacks
from gpt2_orchestration.stack.record import running_record
from gpt2_proxies import exempt_loopback

PREFIX = "GPT2_"

_STACK_VARIABLES = (
    *((address_variable(service), service, "") for service in DEFAULT_PORTS),
    ("GPT2_KAFKA_BOOTSTRAP_SERVERS", "kafka", ""),
    ("GPT2_MLFLOW_TRACKING_URI", "mlflow", "http://"),
    ("GPT2_MONGODB_URI", "mongodb", "mongodb://"),
    ("GPT2_TENSORBOARD_URI", "tensorboard", "http://"),
    ("GPT2_DASHBOARD_TENSORBOARD_LINK", "tensorboard", "http://"),
    ("GPT2_DASHBOARD_MLFLOW_LINK", "mlflow", "http://"),
)
SERVICE_VARIABLES = tuple(address_variable(service) for service in DEFAULT_PORTS)
KAFKA_VARIABLES = ("GPT2_KAFKA_BOOTSTRAP_SERVERS",)
_CONNECTION = re.compile(r"mongodb_uri_[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """An environment variable of the command."""

    name: str
    meaning: str
    default: str = ""
    secret: bool = False


VARIABLES: Sequence[Variable] = (
    *(
        Variable(name=address_variable(service), meaning=f"address of the {service}", default=f"localhost:{port}")
        for service, port in DEFAULT_PORTS.items()
    ),
    Variable(name="GPT2_CLIENT_TOKEN", meaning="bearer token for the services", secret=True),
    Variable(name="GPT2_CLIENT_CA_FILE", meaning="PEM certificate authorities of the services; enables TLS"),
    Variable(name="GPT2_CLIENT_CERTIFICATE_FILE", meaning="PEM client certificate, for mutual TLS"),
    Variable(name="GPT2_CLIENT_KEY_FILE", meaning="PEM private key of that certificate"),
    Variable(name="GPT2_CLIENTS_FILE", meaning="clients file of the services, for `clients`"),
    Variable(name="GPT2_KAFKA_BOOTSTRAP_SERVERS", meaning="Kafka brokers", default="localhost:9092"),
    Variable(name="GPT2_MLFLOW_TRACKING_URI", meaning="MLflow's server, for `doctor`", default="http://localhost:5000"),
    Variable(
        name="GPT2_MONGODB_URI", meaning="MongoDB, for `doctor`", default="mongodb://localhost:27017", secret=True
    ),
    Variable(name="GPT2_KAFKA_TOPIC", meaning="topic of the events", default=DEFAULT_TOPIC),
    Variable(
        name="GPT2_TENSORBOARD_URI",
        meaning="TensorBoard's server, for `dashboard`",
        default="http://localhost:6006",
    ),
    Variable(name="GPT2_DASHBOARD_LISTEN", meaning="HOST:PORT that `dashboard` listens on", default="127.0.0.1:8090"),
    Variable(
        name="GPT2_DASHBOARD_HOSTS",
        meaning="further host names of the dashboard that are accepted, separated by commas",
    ),
    Variable(name="GPT2_DASHBOARD_TENSORBOARD_LINK", meaning="URL of TensorBoard for browsers; empty: no link"),
    Variable(name="GPT2_DASHBOARD_MLFLOW_LINK", meaning="URL of MLflow for browsers; empty: no link"),
    Variable(name=FOLDER_VARIABLE, meaning="folder of the stack to use, as with --stack"),
    Variable(
        name="GPT2_ON_INTERRUPT", meaning="on Ctrl-C: `cancel` the running job, or `leave` it running", default="cancel"
    ),
    Variable(name="GPT2_DEBUG", meaning="any value: errors show a traceback, as with --debug"),
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The resolved configuration.

    Args:
        file: The file that was read; None where there is none.
        environment: The environment variables, without those of the file.
        content: Values of the file, by variable.
        stack: Values of the running stack, by variable.
        stack_folder: Its folder; None where none runs.
        notice: Message about the choice of the stack; may be empty.
        problem: Why no stack could be chosen; empty where one could.
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
        """Finds and reads the file. Raises UsageError when it is invalid, or chosen and missing."""
        file = chosen or next((path for path in _default_files(environment) if path.is_file()), None)
        content = {} if file is None else _read(file)
        folder, notice, problem = _choose_stack(stack_folder)
        return cls(file, dict(environment), content, {} if folder is None else _stack(folder), folder, notice, problem)

    def of_stack(self, folder: Path) -> "Configuration":
        """The same with the stack of a folder; updates the variables of this process."""
        stack_folder, notice, problem = _choose_stack(folder)
        stack = {} if stack_folder is None else _stack(stack_folder)
        other = replace(self, stack=stack, stack_folder=stack_folder, notice=notice, problem=problem)
        for name in self.stack:
            if name not in self.environment and name not in self.content:
                os.environ.pop(name, None)
        other.apply()
        return other

    def announce(self, variables: Sequence[str]) -> None:
        """Prints which servers a command uses, unless a variable or the file names them or it is obvious.

        Args:
            variables: Variables that the command depends on.

        Raises:
            StackError: Several stacks run, and none is selected.
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
        """Makes this the process's configuration: sets variables that only the file or the stack has."""
        _current.set(self)
        of_stack = dict(self.stack)
        if any(self.environment.get(name) or name in self.content for name in KAFKA_VARIABLES):
            # Another broker has its own topics.
            of_stack.pop("GPT2_KAFKA_TOPIC", None)
        for name, value in {**of_stack, **self.content}.items():
            if not os.environ.get(name):
                os.environ[name] = value

    def value(self, variable: Variable) -> tuple[str, str]:
        """Value and source of a variable."""
        if self.environment.get(variable.name):
            return self.environment[variable.name], "environment"
        if variable.name in self.content:
            return self.content[variable.name], str(self.file)
        if variable.name in self.stack:
            return self.stack[variable.name], f"stack in {self.stack_folder}"
        return variable.default, "default"

    def further(self) -> Iterator[Variable]:
        """Variables of the file that belong to services."""
        known = {variable.name for variable in VARIABLES}
        secrets = re.compile("TOKEN|PASSWORD|SECRET|MONGODB_URI|DATABASE_URL")
        for name in sorted(set(self.content) - known):
            yield Variable(name=name, meaning="for the services of `gpt2 stack up`", secret=bool(secrets.search(name)))


_current: ContextVar[Configuration] = ContextVar("configuration")


def _default_files(environment: Mapping[str, str]) -> Iterator[Path]:
    yield Path("gpt2.toml")
    home = environment.get("XDG_CONFIG_HOME") or (f"{environment['HOME']}/.config" if environment.get("HOME") else "")
    if home:
        yield Path(home) / "gpt2" / "config.toml"


def configure_process(file: Path | None, stack_folder: Path | None) -> Configuration:
    """Reads the configuration and applies it to this process. Raises UsageError.

    Args:
        file: The file that `--config` names.
        stack_folder: The folder that `--stack` names.
    """
    exempt_loopback()
    configuration = Configuration.read(file, os.environ, stack_folder)
    configuration.apply()
    return configuration


def client_settings() -> ClientSettings:
    """Addresses and credentials of the services; announces which. Raises StackError where several stacks run."""
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
    """Addresses of a stack's processes, by variable."""
    record = running_record(folder)
    if record is None:
        return {}
    addresses = {process.name: process.address for process in record.processes if process.address}
    values = {
        name: f"{scheme}{addresses[process]}" for name, process, scheme in _STACK_VARIABLES if process in addresses
    }
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
        hint = f"did you mean {near[0]}?" if near else "a key is a variable without GPT2_, in lower case"
        raise UsageError(f"{file}: unknown setting {key}; {hint}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if not isinstance(value, str | int | float):
        raise UsageError(f"{file}: {key} must be a string, a number, true, false or a list of strings")
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
