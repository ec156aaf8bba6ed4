"""`gpt2 run` and `gpt2 compile`: a pipeline from its specification."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.pipelines.specification import load_specification, parse_overrides
from gpt2_orchestration.pipelines.validation import load_with_services, validate_stages
from gpt2_orchestration.runners.library_logs import quiet_libraries

SetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE that overrides the file, such as train_model.config.steps=9. Repeatable."),
]


class Runner(StrEnum):
    """TFX runners."""

    LOCAL = "local"
    BEAM = "beam"


@shows_errors
def run(
    specification: Annotated[Path, typer.Argument(help="YAML file with the pipeline's specification.")],
    runner: Annotated[Runner, typer.Option(help="TFX runner.")] = Runner.LOCAL,
    folder: Annotated[Path, typer.Option(help="Folder of the pipeline's metadata and logs.")] = Path(".gpt2/runs"),
    cache: Annotated[bool, typer.Option(help="Reuse results of earlier runs whose inputs have not changed.")] = True,
    assignments: SetOption = [],  # noqa: B006 - Typer's form of an empty default
    beam_options: Annotated[
        list[str],
        typer.Option("--beam-option", help="Option of Apache Beam, such as --runner=FlinkRunner. Repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Run a pipeline over the services named by GPT2_<SERVICE>_ADDRESS."""
    overrides = parse_overrides(assignments)
    # Which servers validate an invalid file is not announced.
    specified = load_with_services(specification, overrides, ClientSettings.from_environment())
    client = client_settings()
    for warning in validate_stages(specified.stages(), client, str(specification)):
        print(f"gpt2: {warning}", file=sys.stderr)
    facts = ask_services(specified, client)
    settings = PipelineSettings(
        root=folder / specified.name,
        metadata=folder / "metadata.db",
        enable_cache=cache,
        beam_options=tuple(beam_options),
    )
    with quiet_libraries(folder / "tfx.log"):
        # TFX takes seconds to import; errors above are reported before.
        from gpt2_orchestration.runners.local import run_pipeline

        run_pipeline(runner.value, specified, facts, settings)


@shows_errors
def compile(
    specification: Annotated[Path, typer.Argument(help="YAML file with the pipeline's specification.")],
    output: Annotated[Path, typer.Argument(help="YAML file to write, for Kubeflow Pipelines 2.")],
    image: Annotated[str, typer.Option(help="Image of the tasks; it needs gpt2-orchestration.")],
    address: Annotated[
        list[str],
        typer.Option(
            help="SERVICE=HOST:PORT, address of a service in the cluster; the default host is SERVICE.gpt2. Repeatable."
        ),
    ] = [],  # noqa: B006
    token_secret: Annotated[
        str,
        typer.Option(
            help="NAME or NAME/KEY of the Kubernetes Secret with the bearer token, in the namespace of the pipeline's "
            "runs. The default key is `auth-token`."
        ),
    ] = "",
    assignments: SetOption = [],  # noqa: B006
) -> None:
    """Compile a pipeline for Kubeflow Pipelines 2."""
    from gpt2_orchestration.runners.kubeflow.compiling import KubeflowSettings, compile_pipeline, parse_addresses

    specified = load_specification(specification, parse_overrides(assignments))
    settings = KubeflowSettings(image=image, addresses=parse_addresses(address), token_secret=token_secret)
    with quiet_libraries(output.with_suffix(".log")):
        compile_pipeline(specified, settings, output)
