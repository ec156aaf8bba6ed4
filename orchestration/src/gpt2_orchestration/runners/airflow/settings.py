"""Settings of the DAGs, from the environment of scheduler and workers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpt2_orchestration.pipelines.settings import PostgresMetadata


@dataclass(frozen=True, kw_only=True)
class AirflowSettings:
    """Folders, metadata store and task defaults of DAGs."""

    pipelines: Path
    """Folder of specifications (`*.yaml`); GPT2_PIPELINES."""
    folder: Path
    """Folder of TFX's metadata and artifacts, shared by all workers; GPT2_PIPELINE_ROOT."""
    metadata: PostgresMetadata | None = None
    """Database of TFX's metadata; GPT2_METADATA_URL. Without it, a SQLite file in the folder for each pipeline."""
    retries: int = 3
    retry_delay: timedelta = timedelta(seconds=30)
    timeout: timedelta = timedelta(days=14)
    """Timeout of a task, after which its job is cancelled."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "AirflowSettings":
        """Reads GPT2_PIPELINES, GPT2_PIPELINE_ROOT, GPT2_METADATA_URL and GPT2_RETRY_SECONDS.

        Raises:
            SpecificationError: GPT2_METADATA_URL is invalid.
        """
        metadata = environment.get("GPT2_METADATA_URL")
        return cls(
            pipelines=Path(environment.get("GPT2_PIPELINES", "/opt/gpt2/pipelines")),
            folder=Path(environment.get("GPT2_PIPELINE_ROOT", "/opt/gpt2/runs")),
            metadata=PostgresMetadata.parse(metadata) if metadata else None,
            retry_delay=timedelta(seconds=float(environment.get("GPT2_RETRY_SECONDS", "30"))),
        )

    @property
    def task_defaults(self) -> dict[str, Any]:
        """Default arguments of every task."""
        return {"retries": self.retries, "retry_delay": self.retry_delay, "execution_timeout": self.timeout}
