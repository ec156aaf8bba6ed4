"""What holds for artifacts of every kind: the kinds, where a job's outputs lie, and how JSON files in them are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

CORPUS, TOKENIZER, DATASET, CHECKPOINT, LOGS, SAMPLES, MODEL, EVALUATION, VERSION = KINDS = (
    "corpus",
    "tokenizer",
    "dataset",
    "checkpoint",
    "logs",
    "samples",
    "model",
    "evaluation",
    "version",
)
"""Kinds of artifacts; a job's output has the name of its kind. A version's digest is that of its model."""

FORMAT_VERSION = 1
"""Version of the JSON files. A file that states none has version 1; writers state only later ones."""


class DamagedFile(ValueError):
    """A file is not what its contract describes; the message says why."""


class UnsupportedVersion(ValueError):
    """A file has a format version that this release does not read; the message says what to do."""


def job_folder_name(job_id: str) -> str:
    """Name of the folder that holds a job's outputs, such as `run-1~train-model` for the job `run-1/train-model`."""
    # `~` cannot stand in a job id, so that no two ids share a folder and none lies inside another's.
    return job_id.replace("/", "~")


def job_id_of_folder(name: str) -> str:
    """The job whose folder has a name; the inverse of `job_folder_name`."""
    return name.replace("~", "/")


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonFile:
    """Base of the contracts that are one JSON file of an artifact."""

    FILE: ClassVar[str]
    """Path in the artifact."""
    REMEDY: ClassVar[str]
    """What makes the file anew, for error messages."""
    ASCII: ClassVar[bool] = False
    """Whether characters outside ASCII are written as escapes."""

    def to_json(self) -> dict[str, Any]:
        """The content in the order in which it is written."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads the content. Raises KeyError, TypeError, ValueError or AttributeError when it is not that."""
        raise NotImplementedError

    def to_text(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=self.ASCII) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes) -> Self:
        """Reads the text of the file.

        Raises:
            DamagedFile: It is not what `to_text` writes.
            UnsupportedVersion: It has another format version than `FORMAT_VERSION`.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise DamagedFile("it is no JSON object")
            version = content.get("format_version", FORMAT_VERSION)
            if version != FORMAT_VERSION:
                raise UnsupportedVersion(
                    f"{cls.FILE} has format version {version!r}, and this release reads version {FORMAT_VERSION}: "
                    f"update the service, or {cls.REMEDY}"
                )
            return cls.from_json(content)
        except (DamagedFile, UnsupportedVersion):
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFile(repr(error)) from error


def finite_number(value: Any) -> int | float | None:
    """A finite number as it is; None for anything else, such as a NaN, a text or a boolean."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) != float("inf") and value == value else None
