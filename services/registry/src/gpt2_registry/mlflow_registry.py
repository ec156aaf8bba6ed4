"""Registered models in MLflow: their versions, labels (aliases) and tags. The one place that reads and moves them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2_common.errors import InvalidRequest, NotFound
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.registration import predictive_figures

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_RUNS_A_SEARCH = 100


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
    """Last value of each; validation loss and perplexity of the weights that were registered, where that is known."""
    created_millis: int
    """Milliseconds since 1970."""

    @property
    def uri(self) -> str:
        """URI under which MLflow loads it."""
        return f"models:/{self.model_name}/{self.version}"

    @property
    def validation_loss(self) -> float | None:
        """Nats per token; None where it is not known."""
        return self.metrics.get("validation_loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """A model, as MLflow has it."""

    model_name: str
    labels: Mapping[str, int]
    """Version that holds each."""
    latest_version: int
    """0 where there is none."""


class MlflowRegistry:
    """The models that one MLflow server has. May be used by several threads; every call asks the server.

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
                f"model {model_name!r} has no version {version}: ListModelVersions shows what it has",
                model_name=model_name,
                version=str(version),
            ) from None
        return self._described([found], labels)[0]

    def version_by_label(self, model_name: str, label: str) -> RegisteredVersion:
        """Returns the version that holds a label. Raises NotFound when none does."""
        return self.version(model_name, self.holder(model_name, label))

    def holder(self, model_name: str, label: str) -> int:
        """Number of the version that holds a label. Raises NotFound when none does."""
        holder = self.labels(model_name).get(label)
        if holder is None:
            raise NotFound(
                f"no version of model {model_name!r} holds the label {label!r}: SetLabel gives it to one",
                model_name=model_name,
                label=label,
            )
        return holder

    def page(self, model_name: str, size: int, token: str) -> tuple[list[RegisteredVersion], str]:
        """Lists versions, newest first.

        Args:
            model_name: Whose.
            size: Most versions to return.
            token: Token of the page before; empty for the first.

        Returns:
            The versions, and the token of the next page, empty on the last.

        Raises:
            NotFound: There is no such model.
            InvalidRequest: The token is none.
        """
        labels = self.labels(model_name)
        with self.connection.client() as client, _tokens_checked(token):
            found = client.search_model_versions(
                f"name = '{model_name}'", size, order_by=["version_number DESC"], page_token=token or None
            )
        return self._described(list(found), labels), found.token or ""

    def models(self, size: int, token: str) -> tuple[list[RegisteredModel], str]:
        """Lists models by name. Takes and returns what `page` does. Raises InvalidRequest when the token is none."""
        with self.connection.client() as client, _tokens_checked(token):
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
        """Which version holds each label of a model. Raises NotFound when there is no such model."""
        try:
            with self.connection.client() as client:
                aliases = client.get_registered_model(model_name).aliases
        except NotFound:
            raise NotFound(f"there is no model {model_name!r}: RegisterModel makes it", model_name=model_name) from None
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
        """Gives a label to a version; whichever held it loses it in the same moment."""
        with self.connection.client() as client:
            client.set_registered_model_alias(model_name, label, str(version))

    def remove_label(self, model_name: str, label: str) -> None:
        """Takes a label away."""
        with self.connection.client() as client:
            client.delete_registered_model_alias(model_name, label)

    def _described(self, versions: Sequence["ModelVersion"], labels: Mapping[str, int]) -> list[RegisteredVersion]:
        metrics = self._metrics([item.run_id for item in versions if item.run_id])
        return [
            RegisteredVersion(
                model_name=item.name,
                version=int(item.version),
                labels=sorted(label for label, version in labels.items() if version == int(item.version)),
                run_id=item.run_id or "",
                tags=dict(item.tags),
                metrics={**metrics.get(item.run_id, {}), **_registered_figures(item.tags)},
                created_millis=int(item.creation_timestamp),
            )
            for item in versions
        ]

    def _metrics(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, float]]:
        """Last metrics of runs, by run id; a run that was deleted has none."""
        metrics: dict[str, Mapping[str, float]] = {}
        with self.connection.client() as client:
            experiments = [found.experiment_id for found in client.search_experiments()] if run_ids else []
            for start in range(0, len(run_ids), _RUNS_A_SEARCH):
                names = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + _RUNS_A_SEARCH])
                runs = client.search_runs(experiments, f"attributes.run_id IN ({names})", max_results=_RUNS_A_SEARCH)
                metrics |= {run.info.run_id: run.data.metrics for run in runs}
        return metrics


@contextmanager
def _tokens_checked(token: str) -> Iterator[None]:
    """Blames the token of a page where MLflow does."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if token and "page token" in str(error).lower():
            raise InvalidRequest([("page_token", "must be the next_page_token of an answer before")]) from error
        raise


def _registered_figures(tags: Mapping[str, str]) -> dict[str, float]:
    """How well the weights that were registered predict: a training may have gone on after them, and got worse."""
    with suppress(KeyError, ValueError):
        if math.isfinite(loss := float(tags["gpt2.validation_loss"])):
            return predictive_figures(loss)
    return {}
