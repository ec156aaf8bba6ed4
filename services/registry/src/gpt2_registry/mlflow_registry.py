"""Registered models in MLflow: versions, labels (MLflow's aliases) and tags, read and changed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2_common.errors import InvalidRequest, NotFound
from gpt2_contracts.metrics import VALIDATION_BITS_PER_BYTE, VALIDATION_LOSS
from gpt2_contracts.model_version import fact_tag
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.model_metadata import quality_metrics

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_RUNS_PER_SEARCH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version of a model, as MLflow has it."""

    model_name: str
    version: int
    labels: Sequence[str]
    """Sorted."""
    run_id: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each; validation loss and perplexity are those of the registered weights, where they are known."""
    created_millis: int
    """Milliseconds since 1970."""

    @property
    def uri(self) -> str:
        """URI under which MLflow loads it."""
        return f"models:/{self.model_name}/{self.version}"

    @property
    def validation_loss(self) -> float | None:
        """Nats per token; None where it is not known."""
        return self.metrics.get(VALIDATION_LOSS)

    @property
    def bits_per_byte(self) -> float | None:
        """Validation loss in bits per byte of text; None where it is not known."""
        return self.metrics.get(VALIDATION_BITS_PER_BYTE)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """A model, as MLflow has it."""

    model_name: str
    labels: Mapping[str, int]
    """Version of each label."""
    latest_version: int
    """0 where there is none."""


class MlflowRegistry:
    """The models of one MLflow server. Thread-safe; nothing is cached.

    Every method raises Unavailable when MLflow does not answer, and FailedPrecondition when it refuses.

    Args:
        connection: The server.
    """

    def __init__(self, connection: MlflowConnection) -> None:
        self.connection = connection

    def version(self, model_name: str, version: int) -> RegisteredVersion:
        """Returns one version. Raises NotFound."""
        labels = self.labels(model_name)
        try:
            with self.connection.client() as client:
                found = client.get_model_version(model_name, str(version))
        except NotFound:
            raise NotFound(
                f"model {model_name!r} has no version {version}: ListModelVersions lists its versions",
                model_name=model_name,
                version=str(version),
            ) from None
        return self._versions([found], labels)[0]

    def version_by_label(self, model_name: str, label: str) -> RegisteredVersion:
        """Returns the version that has a label. Raises NotFound when none has."""
        return self.version(model_name, self.labelled_version(model_name, label))

    def labelled_version(self, model_name: str, label: str) -> int:
        """Number of the version that has a label. Raises NotFound when none has."""
        number = self.labels(model_name).get(label)
        if number is None:
            raise NotFound(
                f"no version of model {model_name!r} has the label {label!r}: set it with SetLabel",
                model_name=model_name,
                label=label,
            )
        return number

    def page(self, model_name: str, size: int, token: str) -> tuple[list[RegisteredVersion], str]:
        """Lists versions, newest first.

        Args:
            model_name: Whose.
            size: Maximum number of versions.
            token: Token of the page before; empty for the first.

        Returns:
            The versions, and the token of the next page, empty on the last.

        Raises:
            NotFound: There is no such model.
            InvalidRequest: The token is invalid.
        """
        labels = self.labels(model_name)
        with self.connection.client() as client, _checked_token(token):
            found = client.search_model_versions(
                f"name = '{model_name}'", size, order_by=["version_number DESC"], page_token=token or None
            )
        return self._versions(list(found), labels), found.token or ""

    def models(self, size: int, token: str) -> tuple[list[RegisteredModel], str]:
        """Lists models by name; arguments and results as of `page`. Raises InvalidRequest when the token is invalid."""
        with self.connection.client() as client, _checked_token(token):
            found = client.search_registered_models(max_results=size, order_by=["name ASC"], page_token=token or None)
        models = [
            RegisteredModel(
                model_name=item.name,
                labels={label: int(version) for label, version in item.aliases.items()},
                latest_version=max((int(version.version) for version in item.latest_versions), default=0),
            )
            for item in found
        ]
        return models, found.token or ""

    def delete_version(self, model_name: str, version: int) -> None:
        """Deletes a version. Its run stays."""
        with self.connection.client() as client:
            client.delete_model_version(model_name, str(version))

    def labels(self, model_name: str) -> Mapping[str, int]:
        """Version of each label of a model. Raises NotFound when there is no such model."""
        try:
            with self.connection.client() as client:
                aliases = client.get_registered_model(model_name).aliases
        except NotFound:
            raise NotFound(
                f"there is no model {model_name!r}: register one with RegisterModel", model_name=model_name
            ) from None
        return {label: int(version) for label, version in aliases.items()}

    def model_tags(self, model_name: str) -> Mapping[str, str]:
        """Tags of a model as a whole."""
        with self.connection.client() as client:
            return dict(client.get_registered_model(model_name).tags)

    def set_model_tag(self, model_name: str, tag: str, value: str) -> None:
        """Sets a tag of a model as a whole."""
        with self.connection.client() as client:
            client.set_registered_model_tag(model_name, tag, value)

    def set_version_tag(self, model_name: str, version: int, tag: str, value: str) -> None:
        """Sets a tag of a version."""
        with self.connection.client() as client:
            client.set_model_version_tag(model_name, str(version), tag, value)

    def delete_version_tag(self, model_name: str, version: int, tag: str) -> None:
        """Removes a tag of a version; one that is not there is no error."""
        with self.connection.client() as client:
            if tag in client.get_model_version(model_name, str(version)).tags:
                client.delete_model_version_tag(model_name, str(version), tag)

    def move_label(self, model_name: str, label: str, version: int) -> None:
        """Sets a label on a version; the version that had it loses it atomically."""
        with self.connection.client() as client:
            client.set_registered_model_alias(model_name, label, str(version))

    def remove_label(self, model_name: str, label: str) -> None:
        """Removes a label."""
        with self.connection.client() as client:
            client.delete_registered_model_alias(model_name, label)

    def _versions(self, versions: Sequence["ModelVersion"], labels: Mapping[str, int]) -> list[RegisteredVersion]:
        metrics = self._metrics([item.run_id for item in versions if item.run_id])
        return [
            RegisteredVersion(
                model_name=item.name,
                version=int(item.version),
                labels=sorted(label for label, version in labels.items() if version == int(item.version)),
                run_id=item.run_id or "",
                tags=dict(item.tags),
                metrics={**metrics.get(item.run_id, {}), **_registered_metrics(item.tags)},
                created_millis=int(item.creation_timestamp),
            )
            for item in versions
        ]

    def _metrics(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, float]]:
        """Last metrics of runs, by run id; a run that was deleted has none."""
        metrics: dict[str, Mapping[str, float]] = {}
        with self.connection.client() as client:
            experiments = [found.experiment_id for found in client.search_experiments()] if run_ids else []
            for start in range(0, len(run_ids), _RUNS_PER_SEARCH):
                names = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + _RUNS_PER_SEARCH])
                runs = client.search_runs(experiments, f"attributes.run_id IN ({names})", max_results=_RUNS_PER_SEARCH)
                metrics |= {run.info.run_id: run.data.metrics for run in runs}
        return metrics


@contextmanager
def _checked_token(token: str) -> Iterator[None]:
    """Maps MLflow's error for an invalid page token."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if token and "page token" in str(error).lower():
            raise InvalidRequest([("page_token", "must be the next_page_token of a previous page")]) from error
        raise


def _registered_metrics(tags: Mapping[str, str]) -> dict[str, float]:
    """Metrics of the registered weights, which need not be those of the training's last step."""
    return quality_metrics({name: tags.get(fact_tag(name)) for name in (VALIDATION_LOSS, VALIDATION_BITS_PER_BYTE)})
