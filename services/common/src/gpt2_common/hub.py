"""Addresses of models on a Hugging Face hub. Apart from the download, whose library takes long to import."""

import re
from dataclasses import dataclass

from gpt2_common.errors import InvalidRequest

SCHEME = "hf://"
_FORM = re.compile(r"hf://(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A model on a hub: `organisation/name`, and a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @property
    def root(self) -> str:
        """The URI without a revision, which allowed roots are compared with."""
        return f"{SCHEME}{self.repository}"

    @classmethod
    def parse(cls, uri: str) -> "HubAddress":
        """Reads `hf://organisation/name` with `@revision` at its end or without. Raises InvalidRequest."""
        found = _FORM.fullmatch(uri.rstrip("/"))
        if found is None or ".." in uri:
            form = "hf://organisation/name or hf://organisation/name@revision"
            raise InvalidRequest([("uri", f"{uri[:200]!r} is no model of a hub: write {form}")])
        return cls(found["repository"], found["revision"] or "main")
