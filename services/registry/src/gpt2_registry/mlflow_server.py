"""`python -m gpt2_registry.mlflow_server [--serve-artifacts] FOLDER HOST PORT`: MLflow's server in one process.

`mlflow server` starts four workers, a queue of jobs with its processes, and keeps its own process, each with all of
MLflow in memory: 2 GB for what one process does in 300 MB. Here the server gets directly what the command line passes
to its worker. The embedded stack and docker-compose.yml both start it by this module.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import uvicorn


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until a signal ends the process."""
    parser = argparse.ArgumentParser(description="MLflow's server in one process.")
    parser.add_argument("folder", type=Path, help="Holds the SQLite database and the artifacts.")
    parser.add_argument("host", help="Address to listen on.")
    parser.add_argument("port", type=int, help="Port to listen on.")
    parser.add_argument(
        "--serve-artifacts",
        action="store_true",
        help="Artifacts pass through the server. Without it clients of the same machine write them to the folder: "
        "gigabytes need not pass through HTTP.",
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{options.folder}/mlflow.db"
    folder = (options.folder / "artifacts").as_uri()
    root = "mlflow-artifacts:/" if options.serve_artifacts else folder
    _configure(database, root, folder if options.serve_artifacts else "")
    # Imported late: MLflow reads its configuration while it is imported.
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, root)
    uvicorn.run("mlflow.server.fastapi_app:app", host=options.host, port=options.port, access_log=False)


def _configure(database: str, root: str, served: str) -> None:
    os.environ.update(
        {
            # Its queue of background jobs is for evaluations by language models: three more processes, unused here.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    )
    from mlflow.server import constants

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = database
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = root
    if served:
        os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
        os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = served


if __name__ == "__main__":
    main()
