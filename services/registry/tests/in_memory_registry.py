"""The registry of models in memory, for unit tests; `test_registry_contract.py` holds it to what MLflow's does."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gpt2_common.errors import InvalidRequest, NotFound
from gpt2_contracts.model_version import TAG_PREFIX
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredModel, RegisteredVersion
from gpt2_registry.mlflow_versions import VersionWriter
from gpt2_registry.model_metadata import MetricPoint, ModelMetadata, quality_metrics

Item = TypeVar("Item")


@dataclass
class Run:
    """A run of MLflow: what a version was made in."""

    run_id: str
    identity: Mapping[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    model_id: str = ""
    status: str = "RUNNING"


@dataclass
class _Version:
    run: Run
    tags: dict[str, str]
    created_millis: int


@dataclass
class _Model:
    versions: dict[int, _Version] = field(default_factory=dict)
    made: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class InMemoryRegistry(MlflowRegistry):
    """What `MlflowRegistry` gives, without a server."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self.runs: list[Run] = []
        self._clock = itertools.count(1)

    def version(self, model_name: str, version: int) -> RegisteredVersion:
        found = self._version(model_name, version)
        facts = {name.removeprefix(TAG_PREFIX): value for name, value in found.tags.items()}
        return RegisteredVersion(
            model_name=model_name,
            version=version,
            labels=sorted(label for label, held in self._models[model_name].labels.items() if held == version),
            run_id=found.run.run_id,
            tags=dict(found.tags),
            metrics={**found.run.metrics, **quality_metrics(facts)},
            created_millis=found.created_millis,
        )

    def page(self, model_name: str, size: int, token: str) -> tuple[list[RegisteredVersion], str]:
        numbers = sorted(self._model(model_name).versions, reverse=True)
        chosen, after = _page(numbers, size, token)
        return [self.version(model_name, number) for number in chosen], after

    def models(self, size: int, token: str) -> tuple[list[RegisteredModel], str]:
        chosen, after = _page(sorted(self._models), size, token)
        models = [
            RegisteredModel(
                model_name=name,
                labels=dict(self._models[name].labels),
                latest_version=max(self._models[name].versions, default=0),
            )
            for name in chosen
        ]
        return models, after

    def delete_version(self, model_name: str, version: int) -> None:
        self._version(model_name, version)
        model = self._models[model_name]
        del model.versions[version]
        model.labels = {label: held for label, held in model.labels.items() if held != version}

    def labels(self, model_name: str) -> Mapping[str, int]:
        return dict(self._model(model_name).labels)

    def model_tags(self, model_name: str) -> Mapping[str, str]:
        return dict(self._model(model_name).tags)

    def set_model_tag(self, model_name: str, tag: str, value: str) -> None:
        self._model(model_name).tags[tag] = value

    def set_version_tag(self, model_name: str, version: int, tag: str, value: str) -> None:
        self._version(model_name, version).tags[tag] = value

    def delete_version_tag(self, model_name: str, version: int, tag: str) -> None:
        self._version(model_name, version).tags.pop(tag, None)

    def move_label(self, model_name: str, label: str, version: int) -> None:
        self._version(model_name, version)
        self._models[model_name].labels[label] = version

    def remove_label(self, model_name: str, label: str) -> None:
        self._model(model_name).labels.pop(label, None)

    def find(self, model_name: str, identity: Mapping[str, str]) -> int | None:
        """The version that has all of these tags."""
        versions = self._models.get(model_name, _Model()).versions
        return next((number for number, found in versions.items() if identity.items() <= found.tags.items()), None)

    def add(self, model_name: str, run: Run, tags: Mapping[str, str]) -> int:
        """Makes a version, and the model where there is none."""
        model = self._models.setdefault(model_name, _Model())
        model.made += 1
        model.versions[model.made] = _Version(run, dict(tags), next(self._clock))
        return model.made

    def _model(self, model_name: str) -> _Model:
        if model_name not in self._models:
            raise NotFound(f"there is no model {model_name!r}: RegisterModel makes it", model_name=model_name)
        return self._models[model_name]

    def _version(self, model_name: str, version: int) -> _Version:
        found = self._model(model_name).versions.get(version)
        if found is None:
            raise NotFound(f"model {model_name!r} has no version {version}: ListModelVersions shows what it has")
        return found


class InMemoryVersionWriter(VersionWriter):
    """What `VersionWriter` makes, in an `InMemoryRegistry`."""

    def __init__(self, registry: InMemoryRegistry, model_name: str, identity: Mapping[str, str]) -> None:
        self._registry = registry
        self._model_name = model_name
        self._identity = dict(identity)

    def find_version(self) -> int | None:
        return self._registry.find(self._model_name, self._identity)

    def open_run(self) -> Run:
        for run in self._registry.runs:
            if run.identity == self._identity:
                run.status = "RUNNING"
                return run
        run = Run(f"run-{len(self._registry.runs)}", self._identity)
        self._registry.runs.append(run)
        return run

    def log_metadata(self, run: Run, metadata: ModelMetadata, tags: Mapping[str, str]) -> None:
        pass

    def log_metrics(self, run: Run, points: Iterable[MetricPoint]) -> Iterator[int]:
        for count, point in enumerate(points, 1):
            run.metrics[point.name] = point.value
            yield count

    def log_files(self, run: Run, folder: Path) -> None:
        run.files |= {path.name for path in folder.iterdir()}

    def log_model(self, run: Run, metadata: ModelMetadata) -> str:
        run.model_id = run.model_id or f"model-of-{run.run_id}"
        return run.model_id

    def create_version(self, run: Run, model_id: str, tags: Mapping[str, str], description: str) -> int:
        return self._registry.add(self._model_name, run, {**tags, **self._identity})

    @contextmanager
    def final_status(self, run: Run) -> Iterator[None]:
        run.status = "FAILED"
        yield
        run.status = "FINISHED"

    def run_url(self, run_id: str) -> str:
        return f"memory:/runs/{run_id}"


def _page(items: list[Item], size: int, token: str) -> tuple[list[Item], str]:
    if token and not token.isdecimal():
        raise InvalidRequest([("page_token", "must be the next_page_token of an answer before")])
    start = int(token or 0)
    return items[start : start + size], str(start + size) if start + size < len(items) else ""
