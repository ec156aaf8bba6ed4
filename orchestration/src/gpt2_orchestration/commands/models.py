"""`gpt2 models`: registered models, their versions and labels."""

import getpass
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_contracts.metrics import VALIDATION_LOSS
from gpt2_orchestration.client.registered_models import REFERENCE_HELP, described_tags, find_version, list_models, place
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.commands.command_groups import HelpGroup
from gpt2_orchestration.commands.comparison import compare, evaluate
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.commands.tables import print_table

models = typer.Typer(cls=HelpGroup, no_args_is_help=True, help="Registered models, their versions and labels.")


def _registry() -> AbstractContextManager[ServiceClient]:
    return connect("registry", client_settings())


@models.command("list")
@shows_errors
def list_all(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Model whose versions to list.")] = "",
    json: JsonOption = False,
) -> None:
    """List the models, or the versions of one, newest first."""
    with _registry() as registry:
        if name:
            _print_versions(name, list(_versions(registry, name)), json)
        else:
            _print_models(list(list_models(registry)), json)


@models.command()
@shows_errors
def show(model: Annotated[str, typer.Argument(help=REFERENCE_HELP)], json: JsonOption = False) -> None:
    """Show a version: labels, metrics and lineage."""
    with _registry() as registry:
        version = find_version(registry, model)
    if json:
        print_json(as_json(version))
        return
    facts = [("labels", ", ".join(version.labels)), ("registered", _time(version)), ("run", version.mlflow_run_id)]
    facts += [(name, f"{value:.6g}") for name, value in sorted(version.metrics.items())]
    facts += [
        (f"{name} on {place(evaluation.measurement)}", f"{value:.6g}")
        for evaluation in version.evaluations
        for name, value in sorted(evaluation.metrics.items())
    ]
    print_table(("fact", "value"), [*facts, *described_tags(version).items()], version.model_uri)


@models.command()
@shows_errors
def label(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    label: Annotated[str, typer.Argument(help="The label, such as `staging`.")],
    version: Annotated[int, typer.Argument(metavar="[VERSION]", help="Version that gets the label.")] = 0,
    clear: Annotated[bool, typer.Option("--clear", help="Clear the label.")] = False,
    reason: Annotated[str, typer.Option(help="Reason to record.")] = "",
    actor: Annotated[
        str,
        typer.Option(
            help="Actor to record. Default: the client of the token or certificate; without one, your user name."
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Set or clear a label."""
    if clear == bool(version):
        raise UsageError("set either VERSION or --clear")
    settings = client_settings()
    change = {"model_name": name, "label": label, "actor": actor or _unproven_actor(settings), "reason": reason}
    with connect("registry", settings) as registry:
        if clear:
            answer = registry.call("ClearLabel", pb.ClearLabelRequest(**change))
        else:
            answer = registry.call("SetLabel", pb.SetLabelRequest(**change, version=version))
    if json:
        print_json(as_json(answer))
        return
    before = f"version {answer.previous_version}" if answer.previous_version else "none"
    print(f"{label} of {name}: {'none' if clear else f'version {version}'} (before: {before})")


@models.command()
@shows_errors
def history(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    label: Annotated[str, typer.Option(help="Only changes of this label.")] = "",
    json: JsonOption = False,
) -> None:
    """List changes of labels with actor and reason, newest first."""
    request = pb.ListLabelChangesRequest(model_name=name, label=label)
    with _registry() as registry:
        changes = registry.call("ListLabelChanges", request).changes
    if json:
        print_json([as_json(change) for change in changes])
        return
    rows = (
        (
            change.time.ToJsonString(),
            change.label,
            _held(change.previous_version),
            _held(change.version),
            change.actor,
            change.reason,
        )
        for change in changes
    )
    print_table(("time", "label", "from", "to", "who", "why"), rows, name)


models.command()(evaluate)
models.command()(compare)


def _versions(registry: ServiceClient, name: str) -> Iterator[pb.ModelVersion]:
    request = pb.ListModelVersionsRequest(model_name=name)
    while True:
        page = registry.call("ListModelVersions", request)
        yield from page.model_versions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _print_models(found: Sequence[pb.RegisteredModel], json: bool) -> None:
    if json:
        print_json([as_json(model) for model in found])
        return
    rows = ((model.model_name, model.latest_version, _labels(model)) for model in found)
    print_table(("model", "newest", "labels"), rows)


def _print_versions(name: str, found: Sequence[pb.ModelVersion], json: bool) -> None:
    if json:
        print_json([as_json(version) for version in found])
        return
    rows = ((item.version, ", ".join(item.labels), _loss(item), _time(item)) for item in found)
    print_table(("version", "labels", "validation loss", "registered"), rows, name)


def _labels(model: pb.RegisteredModel) -> str:
    return ", ".join(f"{label}: {version}" for label, version in sorted(model.labels.items()))


def _loss(version: pb.ModelVersion) -> str:
    return f"{version.metrics[VALIDATION_LOSS]:.6g}" if VALIDATION_LOSS in version.metrics else ""


def _time(version: pb.ModelVersion) -> str:
    return str(version.create_time.ToJsonString())


def _held(version: int) -> str:
    return str(version or "none")


def _unproven_actor(settings: ClientSettings) -> str:
    """The user's name where no credentials identify the caller; the registry records it as unproven."""
    if settings.token or settings.certificate_file:
        return ""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
