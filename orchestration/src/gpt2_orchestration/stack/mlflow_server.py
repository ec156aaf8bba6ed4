"""`python -m gpt2_orchestration.stack.mlflow_server FOLDER HOST PORT`: MLflow's server in one process.

`mlflow server` starts a second process and keeps the first, each with all of MLflow in memory; on one machine that is
twice the start time and memory for nothing. What its command line tells its worker is told here directly.
"""

import os
import sys
from pathlib import Path

import uvicorn


def main(folder: Path, host: str, port: int) -> None:
    """Serves until a signal ends the process.

    Args:
        folder: Holds the SQLite database and the artifacts.
        host: Address to listen on.
        port: Port to listen on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{folder}/mlflow.db"
    # Clients on the same machine write artifacts there themselves: gigabytes need not pass through HTTP.
    artifacts = (folder / "artifacts").as_uri()
    _configure(database, artifacts)
    # Imported late: MLflow reads its configuration while it is imported.
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, artifacts)
    uvicorn.run("mlflow.server.fastapi_app:app", host=host, port=port, access_log=False)


def _configure(database: str, artifacts: str) -> None:
    os.environ.update(
        {
            # Its queue of background jobs is for evaluations by language models: three more processes, unused here.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    )
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR

    os.environ[BACKEND_STORE_URI_ENV_VAR] = database
    os.environ[REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[ARTIFACT_ROOT_ENV_VAR] = artifacts


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
