"""Labels: which version of a model is ready for what, who said so, when and why.

MLflow keeps the holder of a label (an alias) but no history. So each change is written three times: on the version
(`gpt2.label.<label>`: who, when, why), on the model (`gpt2.label_history.…`: one tag a change), and as an event.
The version is written first: a label is never held without a word on who gave it. All writes may be repeated.
"""

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gpt2.events.v1 import events_pb2
from gpt2_common.errors import FailedPrecondition
from gpt2_common.events.cloudevent import CloudEvent
from gpt2_registry.mlflow_registry import MlflowRegistry
from gpt2_registry.rules import NOT_READY, LabelRules

SOURCE = "/gpt2/registry"
READINESS_TAG = "readiness"
"""Labels that a version holds, joined by commas, or `draft`: to search for in MLflow."""
HISTORY_PREFIX = "gpt2.label_history."

_LABEL_PREFIX = "gpt2.label."
_LONGEST_TAG_NAME = 250
_HASH_LENGTH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelChange:
    """What is to be changed, and who asks for it."""

    model_name: str
    label: str
    actor: str
    reason: str
    operation: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names the change, so that a repetition of it is recognised."""


class Labels:
    """The labels of all models. One change at a time; other processes may change them too.

    Args:
        registry: Where they are kept.
        rules: Which labels there are, and what each asks of a version.
        publish: Takes the event of a change.
    """

    def __init__(self, registry: MlflowRegistry, rules: LabelRules, publish: Callable[[CloudEvent], None]) -> None:
        self._registry = registry
        self._rules = rules
        self._publish = publish
        self._lock = threading.Lock()

    def set(self, change: LabelChange, version: int) -> int:
        """Gives a label to a version.

        Returns:
            The version that held it before; 0 when none did.

        Raises:
            NotFound: There is no such version; nothing was changed.
            FailedPrecondition: The rules do not allow it; nothing was changed.
        """
        name, label = change.model_name, change.label
        with self._lock:
            self._rules.require(label, self._registry.version(name, version))
            previous = self._registry.labels(name).get(label, 0)
            now = datetime.now(UTC)
            who = {"label": label, "actor": change.actor, "reason": change.reason, "time": _text(now)}
            self._registry.set_version_tag(name, version, label_tag(label), _json(who))
            self._registry.move_label(name, label, version)
            if previous not in (0, version):
                self._forget(name, label, previous)
            self._note_readiness(name, version)
            self._record(change, previous, version, now)
            return previous

    def set_once(self, change: LabelChange, version: int) -> None:
        """As `set`, unless this operation has done it before, even if the label has moved on since."""
        tag = _history_tag(change)
        recorded = self._registry.model_tags(change.model_name).get(tag)
        if recorded is None:
            self.set(change, version)
            return
        # The event may have been lost with the process; who hears it twice knows it by its id.
        entry = json.loads(recorded)
        self._announce(change, entry["previous_version"], version, datetime.fromisoformat(entry["time"]))

    def clear(self, change: LabelChange) -> int:
        """Takes a label away.

        Returns:
            The version that held it.

        Raises:
            NotFound: None does.
        """
        name, label = change.model_name, change.label
        with self._lock:
            previous = self._registry.holder(name, label)
            self._registry.remove_label(name, label)
            self._forget(name, label, previous)
            self._record(change, previous, 0, datetime.now(UTC))
            return previous

    def history(self, model_name: str, label: str) -> list[Mapping[str, Any]]:
        """The changes of one label, or of all where it is empty, newest first. Raises NotFound."""
        self._registry.labels(model_name)
        tags = self._registry.model_tags(model_name)
        entries = [json.loads(value) for tag, value in tags.items() if tag.startswith(HISTORY_PREFIX)]
        chosen = [entry for entry in entries if label in ("", entry["label"])]
        return sorted(chosen, key=lambda entry: str(entry["time"]), reverse=True)

    def delete_version(self, model_name: str, version: int) -> None:
        """Deletes a version that holds no label.

        Raises:
            NotFound: There is no such version.
            FailedPrecondition: It holds a label.
        """
        with self._lock:
            held = self._registry.version(model_name, version).labels
            if held:
                raise FailedPrecondition(
                    f"version {version} of {model_name!r} is {' and '.join(held)}: "
                    "give the label to another version or ClearLabel it first",
                    model_name=model_name,
                    version=str(version),
                )
            self._registry.delete_version(model_name, version)

    def _forget(self, model_name: str, label: str, version: int) -> None:
        """Removes what says that a version holds a label."""
        self._registry.delete_version_tag(model_name, version, label_tag(label))
        self._note_readiness(model_name, version)

    def _note_readiness(self, model_name: str, version: int) -> None:
        held = sorted(label for label, holder in self._registry.labels(model_name).items() if holder == version)
        self._registry.set_version_tag(model_name, version, READINESS_TAG, ",".join(held) or NOT_READY)

    def _record(self, change: LabelChange, previous: int, version: int, now: datetime) -> None:
        entry = {
            "label": change.label,
            "previous_version": previous,
            "version": version,
            "actor": change.actor,
            "reason": change.reason,
            "time": _text(now),
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
        )
        self._publish(
            CloudEvent(
                id=change.operation,
                source=SOURCE,
                type=message.DESCRIPTOR.full_name,
                subject=change.model_name,
                key=change.model_name,
                time=now,
                data=message.SerializeToString(),
            )
        )


def label_tag(label: str) -> str:
    """Name of the tag that says who gave a version a label; MLflow's names of tags are shorter than its labels."""
    tag = _LABEL_PREFIX + label
    if len(tag) <= _LONGEST_TAG_NAME:
        return tag
    # A point cannot stand in a label, so no other label's tag has this name.
    end = "." + hashlib.sha256(label.encode()).hexdigest()[:_HASH_LENGTH]
    return tag[: _LONGEST_TAG_NAME - len(end)] + end


def _history_tag(change: LabelChange) -> str:
    return HISTORY_PREFIX + change.operation


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, ensure_ascii=False)
