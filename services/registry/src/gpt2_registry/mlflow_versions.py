"""Creates a version of a model in MLflow: a run with parameters and metrics, the served model, then the version.

Each step looks for the result of an earlier attempt by the tags `gpt2.job_id` and `gpt2.request_digest`, which are
written atomically with it; so a job that was killed at any point resumes there and creates one version.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gpt2_common.errors import FailedPrecondition, JobInterrupted, PipelineError
from gpt2_contracts.model_version import JOB_ID_TAG
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.model_metadata import MetricPoint, ModelMetadata

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

_METRICS_PER_BATCH = 1000
_PARAMETERS_PER_BATCH = 100
_EXAMPLE = ("Once upon a time",)
_DESCRIPTION = (
    "GPT-2, registered by the pipeline. Each version describes its lineage and its validation loss; its aliases "
    "are its labels, and `gpt2 models history` lists who set them, when and why."
)
_SERVING_CODE = Path(__file__).with_name("serving_model.py")
_REQUIREMENTS = ("tensorflow>=2.21,<3", "tokenizers>=0.21,<1", "numpy>=2,<3")
"""Requirements of the served model. TensorFlow reads a SavedModel of the same or an older version."""


class VersionWriter:
    """Writes the version of one job. For one process at a time.

    Args:
        connection: The MLflow server.
        model_name: Whose version it is.
        identity: Tags that identify the job, and no others.
    """

    def __init__(self, connection: MlflowConnection, model_name: str, identity: Mapping[str, str]) -> None:
        self._connection = connection
        self._model_name = model_name
        self._identity = dict(identity)
        self._filter = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())

    def find_version(self) -> int | None:
        """The version that the job has created; None when it has created none yet."""
        with self._connection.client() as client:
            query = f"name = '{self._model_name}' and {self._filter}"
            found = client.search_model_versions(query, max_results=1)
        return int(found[0].version) if found else None

    def open_run(self) -> "Run":
        """Finds or creates the run, with the status RUNNING."""
        with self._connection.client() as client:
            experiment = self._experiment(client)
            found = client.search_runs([experiment], self._filter, max_results=1)
            if not found:
                return client.create_run(experiment, tags=self._identity, run_name=self._identity[JOB_ID_TAG])
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]

    def log_metadata(self, run: "Run", metadata: ModelMetadata, tags: Mapping[str, str]) -> None:
        """Logs parameters and tags. Idempotent."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        parameters = [Param(name, value) for name, value in metadata.parameters().items()]
        with self._connection.client() as client:
            for batch in _batches(parameters, _PARAMETERS_PER_BATCH):
                client.log_batch(run.info.run_id, params=batch)
            described = {**tags, MLFLOW_RUN_NOTE: metadata.summary()}
            client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in described.items()])

    def log_metrics(self, run: "Run", points: Iterable[MetricPoint]) -> Iterator[int]:
        """Logs metrics over their steps. Yields how many were logged so far. Idempotent.

        MLflow drops a value whose step and time it has already, so that all have the time of the run's start.
        """
        from mlflow.entities import Metric

        time = run.info.start_time
        logged = 0
        metrics = (Metric(point.name, point.value, time, point.step) for point in points)
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            with self._connection.client() as client:
                client.log_batch(run.info.run_id, metrics=batch)
            logged += len(batch)
            yield logged

    def log_files(self, run: "Run", folder: Path) -> None:
        """Uploads the files of a folder. Idempotent."""
        with self._connection.client() as client:
            client.log_artifacts(run.info.run_id, str(folder))

    def log_model(self, run: "Run", metadata: ModelMetadata) -> str:
        """Uploads the served model, unless an earlier attempt has. Returns its id in MLflow.

        An unfinished one of an earlier attempt is deleted, as its upload may be incomplete.
        """
        with self._connection.client() as client:
            for found in self._logged_models(client, run):
                if str(found.status) == "READY":
                    return str(found.model_id)
                client.delete_logged_model(found.model_id)
            return self._upload(client, run, metadata)

    def create_version(self, run: "Run", model_id: str, tags: Mapping[str, str], description: str) -> int:
        """Creates the version, with all of its tags. Returns its number."""
        with self._connection.client() as client:
            self._ensure_model(client)
            created = client.create_model_version(
                self._model_name,
                f"models:/{model_id}",
                run.info.run_id,
                tags={**tags, **self._identity},
                model_id=model_id,
                description=description,
            )
        if str(created.status) != "READY":
            raise FailedPrecondition(f"MLflow did not make version {created.version}: {created.status_message}")
        return int(created.version)

    @contextmanager
    def final_status(self, run: "Run") -> Iterator[None]:
        """Sets the status with which the run ends."""
        try:
            yield
        except BaseException as error:
            # The error matters more than a status that could not be set.
            with suppress(PipelineError):
                self._end(run, "KILLED" if isinstance(error, JobInterrupted) else "FAILED")
            raise
        self._end(run, "FINISHED")

    def run_url(self, run_id: str) -> str:
        """Page of a run in MLflow's user interface."""
        with self._connection.client() as client:
            experiment = client.get_run(run_id).info.experiment_id
        return f"{self._connection.uri}/#/experiments/{experiment}/runs/{run_id}"

    def _end(self, run: "Run", status: str) -> None:
        with self._connection.client() as client:
            client.set_terminated(run.info.run_id, status)

    def _experiment(self, client: "MlflowClient") -> str:
        """Runs of one model share an experiment of its name, to be compared there."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self._model_name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(self._model_name))
        except MlflowException as error:
            # Another job has created it meanwhile.
            found = client.get_experiment_by_name(self._model_name)
            if found is None:
                raise error
            return str(found.experiment_id)

    def _ensure_model(self, client: "MlflowClient") -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self._model_name, description=_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged_models(self, client: "MlflowClient", run: "Run") -> list["LoggedModel"]:
        found = client.search_logged_models([run.info.experiment_id], self._filter)
        return [model for model in found if model.source_run_id == run.info.run_id]

    def _upload(self, client: "MlflowClient", run: "Run", metadata: ModelMetadata) -> str:
        """Uploads the served model in the steps of MLflow's own `log_model`, without its trial call.

        The trial call would load the whole model into this process. The trainer has called the graph already.
        """
        from mlflow.entities import LoggedModelOutput

        logged = client.create_logged_model(
            run.info.experiment_id, "model", run.info.run_id, tags=self._identity, params=metadata.parameters()
        )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            _save_served_model(path, logged, metadata)
            client.log_model_artifacts(logged.model_id, str(path))
        client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        _log_quality(client, run, logged, metadata)
        client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)


def _save_served_model(path: Path, logged: "LoggedModel", metadata: ModelMetadata) -> None:
    """Writes the folder that MLflow serves: code, graph, tokenizer, signature and input example."""
    import mlflow
    from mlflow.models import Model

    described = Model(
        artifact_path=logged.artifact_location,
        run_id=logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=described,
            python_model=str(_SERVING_CODE),
            artifacts=metadata.served_files(),
            signature=serving_signature(),
            input_example=(list(_EXAMPLE), {"max_tokens": 64, "temperature": 0.8, "seed": 1}),
            pip_requirements=list(_REQUIREMENTS),
        )


def _log_quality(client: "MlflowClient", run: "Run", logged: "LoggedModel", metadata: ModelMetadata) -> None:
    """Logs the model's metrics where MLflow's list of models shows them."""
    from mlflow.entities import Metric

    time = run.info.start_time
    metrics = [
        Metric(name, value, time, metadata.step, model_id=logged.model_id, run_id=run.info.run_id)
        for name, value in metadata.quality_metrics().items()
    ]
    client.log_batch(run.info.run_id, metrics=metrics)


def serving_signature() -> "ModelSignature":
    """The signature of the served model.

    The column is of any type, as MLflow turns null and numbers into text where it is one, and the model must refuse
    them. It is optional, as a plain list comes as a frame whose only column is 0; one with a column 1 is refused.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    columns = [ColSpec(AnyType(), name, required=False) for name in (0, "prompt", 1)]
    parameters = [
        ParamSpec("temperature", DataType.double, 1.0),
        ParamSpec("top_k", DataType.long, 40),
        ParamSpec("top_p", DataType.double, 1.0),
        ParamSpec("max_tokens", DataType.long, 128),
        ParamSpec("seed", DataType.long, 0),
        ParamSpec("repetition_penalty", DataType.double, 1.0),
        ParamSpec("no_repeat_ngram_size", DataType.long, 0),
        ParamSpec("stop", DataType.string, [], shape=(-1,)),
    ]
    return ModelSignature(Schema(columns), Schema([ColSpec(DataType.string)]), ParamSchema(parameters))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
