"""Labels of model versions, which are aliases in MLflow, with the history that MLflow does not keep.

A change is written to the version (`gpt2.label.<label>`: who, when, why), then to the model (a tag for each change),
and published as an event. All writes are idempotent.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gpt2.events.v1 import events_pb2
from gpt2_common.errors import FailedPrecondition
from gpt2_contracts.events import CloudEvent, source_of
from gpt2_contracts.model_version import LABEL_HISTORY_TAG_PREFIX, LABEL_TAG_PREFIX, NOT_READY, READINESS_TAG
from gpt2_registry.label_lock import LabelLock
from gpt2_registry.label_rules import LabelRules
from gpt2_registry.mlflow_registry import MlflowRegistry

_MAX_TAG_NAME = 250
_HASH_LENGTH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelChange:
    """A change of a label, and who requested it."""

    model_name: str
    label: str
    actor: str
    reason: str
    job_id: str = ""
    """The job that makes the change; empty for a call."""
    operation: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the change, so that a retry of it is recognised."""


class Labels:
    """The labels of all models. Changes to one model are serialised over all replicas and jobs of the registry.

    Args:
        registry: Where they are kept.
        rules: Which labels exist, and what each requires of a version.
        publish: Takes the event of a change.
        lock: Keeps changes apart.
    """

    def __init__(
        self, registry: MlflowRegistry, rules: LabelRules, publish: Callable[[CloudEvent], None], lock: LabelLock
    ) -> None:
        self._registry = registry
        self._rules = rules
        self._publish = publish
        self._lock = lock

    def set(self, change: LabelChange, version: int) -> int:
        """Sets a label on a version; the version that had it loses it.

        Returns:
            The version that had it before; 0 when none had.

        Raises:
            NotFound: There is no such version; nothing was changed.
            FailedPrecondition: The rules do not allow it; nothing was changed.
        """
        name, label = change.model_name, change.label
        with self._lock.hold(name):
            self._rules.require(label, self._registry.version(name, version))
            previous = self._registry.labels(name).get(label, 0)
            now = datetime.now(UTC)
            who = {"label": label, "actor": change.actor, "reason": change.reason, "time": _timestamp(now)}
            self._lock.require()
            self._registry.set_version_tag(name, version, label_tag(label), _json(who))
            self._registry.move_label(name, label, version)
            if previous not in (0, version):
                self._remove_label_tag(name, label, previous)
            self._update_readiness(name, version)
            self._record(change, previous, version, now)
            return previous

    def set_once(self, change: LabelChange, version: int) -> None:
        """As `set`, unless an earlier attempt of this operation has set it, even if the label has moved since."""
        tag = _history_tag(change)
        recorded = self._registry.model_tags(change.model_name).get(tag)
        if recorded is None:
            self.set(change, version)
            return
        # The event may have been lost with the process; consumers recognise a second one by its id.
        entry = json.loads(recorded)
        self._announce(change, entry["previous_version"], version, datetime.fromisoformat(entry["time"]))

    def clear(self, change: LabelChange) -> int:
        """Removes a label.

        Returns:
            The version that had it.

        Raises:
            NotFound: No version has it.
        """
        name, label = change.model_name, change.label
        with self._lock.hold(name):
            previous = self._registry.labelled_version(name, label)
            self._lock.require()
            self._registry.remove_label(name, label)
            self._remove_label_tag(name, label, previous)
            self._record(change, previous, 0, datetime.now(UTC))
            return previous

    def history(self, model_name: str, label: str) -> list[Mapping[str, Any]]:
        """The changes of one label, or of all where it is empty, newest first. Raises NotFound."""
        self._registry.labels(model_name)
        tags = self._registry.model_tags(model_name)
        entries = [json.loads(value) for tag, value in tags.items() if tag.startswith(LABEL_HISTORY_TAG_PREFIX)]
        chosen = [entry for entry in entries if label in ("", entry["label"])]
        return sorted(chosen, key=lambda entry: str(entry["time"]), reverse=True)

    def delete_version(self, model_name: str, version: int) -> None:
        """Deletes a version that has no label.

        Raises:
            NotFound: There is no such version.
            FailedPrecondition: It has a label.
        """
        with self._lock.hold(model_name):
            held = self._registry.version(model_name, version).labels
            if held:
                raise FailedPrecondition(
                    f"version {version} of {model_name!r} is {' and '.join(held)}: "
                    "set the label on another version, or remove it with ClearLabel, first",
                    model_name=model_name,
                    version=str(version),
                )
            self._lock.require()
            self._registry.delete_version(model_name, version)

    def _remove_label_tag(self, model_name: str, label: str, version: int) -> None:
        """Removes the tag of a label that a version has lost."""
        self._registry.delete_version_tag(model_name, version, label_tag(label))
        self._update_readiness(model_name, version)

    def _update_readiness(self, model_name: str, version: int) -> None:
        held = sorted(label for label, number in self._registry.labels(model_name).items() if number == version)
        self._registry.set_version_tag(model_name, version, READINESS_TAG, ",".join(held) or NOT_READY)

    def _record(self, change: LabelChange, previous: int, version: int, now: datetime) -> None:
        entry = {
            "label": change.label,
            "previous_version": previous,
            "version": version,
            "actor": change.actor,
            "reason": change.reason,
            "job_id": change.job_id,
            "time": _timestamp(now),
        }
        self._registry.set_model_tag(change.model_name, _history_tag(change), _json(entry))
        self._announce(change, previous, version, now)

    def _announce(self, change: LabelChange, previous: int, version: int, now: datetime) -> None:
        message = events_pb2.ModelLabelChanged(
            model_name=change.model_name,
            label=change.label,
            previous_version=previous,
            version=version,
            actor=change.actor,
            reason=change.reason,
            job_id=change.job_id,
        )
        self._publish(
            CloudEvent(
                id=change.operation,
                source=source_of("registry"),
                type=message.DESCRIPTOR.full_name,
                subject=change.model_name,
                key=change.model_name,
                time=now,
                data=message.SerializeToString(),
            )
        )


def label_tag(label: str) -> str:
    """Name of a label's tag; MLflow allows shorter names of tags than of aliases, so that long ones end in a hash."""
    tag = LABEL_TAG_PREFIX + label
    if len(tag) <= _MAX_TAG_NAME:
        return tag
    # A label contains no point, so that no other label's tag has this name.
    end = "." + hashlib.sha256(label.encode()).hexdigest()[:_HASH_LENGTH]
    return tag[: _MAX_TAG_NAME - len(end)] + end


def _history_tag(change: LabelChange) -> str:
    return LABEL_HISTORY_TAG_PREFIX + change.operation


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, ensure_ascii=False)
