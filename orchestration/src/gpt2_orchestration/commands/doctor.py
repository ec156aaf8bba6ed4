"""`gpt2 doctor`: checks addresses, versions, disk and GPU, and shows how to fix what is wrong."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from gpt2_orchestration.client.addresses import DEFAULT_PORTS, address_variable
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect
from gpt2_orchestration.client.services import event_problem
from gpt2_orchestration.commands.configuration import Configuration, current_configuration
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json
from gpt2_orchestration.commands.tables import print_table
from gpt2_orchestration.stack.discovery import USUAL_FOLDER
from gpt2_proxies import describe_proxies

_CONNECT_SECONDS = 3.0
_MIN_FREE_BYTES = 5 * 2**30
_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_GPU_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one check."""

    what: str
    ok: bool
    found: str
    fix: str = ""
    """How to fix it; empty where nothing is wrong."""


@shows_errors
def doctor(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the stack to check. Default: the one that runs here.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check addresses, versions, disk and GPU, and show how to fix what is wrong. Exit status 1 if anything is."""
    configuration = current_configuration()
    if folder is not None:
        configuration = configuration.of_stack(folder)
    place = folder or configuration.stack_folder or Path(USUAL_FOLDER)
    services = _services(ClientSettings.from_environment(os.environ))
    findings = [
        _stack(configuration),
        *services,
        *_servers(os.environ),
        _proxies(os.environ),
        _disk(place),
        _gpu(),
    ]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = ((item.what, "ok" if item.ok else "wrong", item.found, item.fix) for item in findings)
        print_table(("what", "", "found", "to do"), rows)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _services(settings: ClientSettings) -> Iterator[Finding]:
    own = version("gpt2-orchestration")
    for service in DEFAULT_PORTS:
        address = settings.addresses[service]
        with connect(service, settings) as client:
            try:
                about = client.describe()
            except ServiceError as error:
                yield Finding(what=service, ok=False, found=address, fix=str(error))
                continue
        found = f"{about.service} {about.version} at {address}"
        variable = address_variable(service)
        if about.service != service:
            yield Finding(what=service, ok=False, found=found, fix=f"set {variable} to the {service}'s address")
        elif about.version != own:
            yield Finding(what=service, ok=False, found=found, fix=f"this command is {own}: install the same version")
        elif problem := event_problem(about.events):
            yield Finding(what=service, ok=False, found=found, fix=problem)
        else:
            yield Finding(what=service, ok=True, found=found)


def _stack(configuration: Configuration) -> Finding:
    """The stack whose addresses are used."""
    if configuration.problem:
        return Finding(what="stack", ok=False, found="several run", fix=configuration.problem)
    if configuration.stack_folder is None:
        return Finding(
            what="stack", ok=True, found=f"none is running in {Path.cwd()}: addresses that are not set are the defaults"
        )
    return Finding(what="stack", ok=True, found=configuration.notice or f"that in {configuration.stack_folder}")


def _servers(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The servers that services use: whether their ports accept connections."""
    for what, variable, default in (
        ("Kafka", "GPT2_KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        ("MLflow", "GPT2_MLFLOW_TRACKING_URI", "http://localhost:5000"),
        ("MongoDB", "GPT2_MONGODB_URI", "mongodb://localhost:27017"),
    ):
        host, port = _host_and_port(environment.get(variable) or default)
        where = f"{host}:{port}"
        try:
            with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
                yield Finding(what=what, ok=True, found=f"listens at {where}")
        except OSError as error:
            fix = f"start it (`gpt2 stack up`), or set {variable} to its address"
            yield Finding(what=what, ok=False, found=f"{where}: {error.strerror or error}", fix=fix)


def _proxies(environment: Mapping[str, str]) -> Finding:
    found = describe_proxies(environment)
    what = f"{found}; bypassed for loopback and no_proxy={environment.get('no_proxy', '')}"
    return Finding(what="proxy", ok=True, found=what if found else "none in the environment")


def _host_and_port(address: str) -> tuple[str, int]:
    """Host and port of the first server of an address, without credentials."""
    first = address.split(",")[0]
    parts = urlsplit(first if "://" in first else f"tcp://{first}")
    usual = {"http": 80, "https": 443, "mongodb": 27017}
    return parts.hostname or "localhost", parts.port or usual.get(parts.scheme, 9092)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free at {existing}"
    fix = "" if free >= _MIN_FREE_BYTES else f"free space: models need {_MIN_FREE_BYTES // 2**30} GiB at least"
    return Finding(what="disk", ok=not fix, found=found, fix=fix)


def _gpu() -> Finding:
    """The GPUs of this machine. None is not an error: training then runs on the CPU."""
    none = Finding(what="GPU", ok=True, found="none here; training on this machine takes the CPU")
    if shutil.which(_GPU_QUERY[0]) is None:
        return none
    try:
        answer = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        fix = "run `nvidia-smi`, and fix the driver problem that it reports"
        return Finding(what="GPU", ok=False, found=f"nvidia-smi failed ({type(error).__name__})", fix=fix)
    names = answer.stdout.strip().splitlines()
    return Finding(what="GPU", ok=True, found="; ".join(names)) if names else none
