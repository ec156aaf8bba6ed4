"""`gpt2 dashboard`: serves the dashboard for services that run elsewhere."""

import os
from typing import Annotated

import typer

from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.dashboard.server import serve
from gpt2_orchestration.dashboard.settings import DashboardSettings


@shows_errors
def dashboard(
    listen: Annotated[
        str,
        typer.Option(
            envvar="GPT2_DASHBOARD_LISTEN", help="HOST:PORT to listen on. Everyone who can connect acts with its token."
        ),
    ] = "127.0.0.1:8090",
) -> None:
    """Serve the dashboard of the services named by GPT2_<SERVICE>_ADDRESS until Ctrl-C. `gpt2 stack up` has its own."""
    settings = DashboardSettings.from_environment({**os.environ, "GPT2_DASHBOARD_LISTEN": listen})
    print(f"the dashboard is at http://{listen}; Ctrl-C stops it", flush=True)
    serve(settings)
