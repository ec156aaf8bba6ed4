"""The environment variables of a container, as a kubelet resolves them."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_FIELD = re.compile(r"metadata\.(?P<map>labels|annotations)\['(?P<key>[^']+)'\]")

GetObject = Callable[[str], Mapping[str, Any] | None]
"""Gets an object of the pod's namespace by its path below it, such as `secrets/NAME`; None where there is none."""


class MissingReference(Exception):
    """A Secret, a ConfigMap or a key in it that a container refers to is not there."""


def container_environment(pod: Mapping[str, Any], container: Mapping[str, Any], get: GetObject) -> dict[str, str]:
    """All variables of a container by name. Raises MissingReference."""
    variables: dict[str, str] = {}
    for entry in container.get("envFrom", []):
        prefix = entry.get("prefix", "")
        for kind, field in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if field in entry:
                found = _data(kind, entry[field], get)
                variables |= {prefix + key: value for key, value in found.items()}
    for entry in container.get("env", []):
        value = _value(pod, entry.get("valueFrom"), get) if "valueFrom" in entry else entry.get("value", "")
        if value is not None:
            variables[entry["name"]] = expand(value, variables)
    return variables


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with each `$(NAME)` replaced by its value, where there is one."""
    return _REFERENCE.sub(lambda match: variables.get(match[1], match[0]), text)


def _value(pod: Mapping[str, Any], source: Mapping[str, Any], get: GetObject) -> str | None:
    for kind, field in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
        if field in source:
            reference = source[field]
            value = _data(kind, reference, get).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise MissingReference(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
            return value
    path = source["fieldRef"]["fieldPath"]
    if match := _FIELD.fullmatch(path):
        return str(pod["metadata"].get(match["map"], {}).get(match["key"], ""))
    found: Any = pod
    for part in path.split("."):
        found = found.get(part, {})
    return str(found or "")


def _data(kind: str, reference: Mapping[str, Any], get: GetObject) -> dict[str, str]:
    found = get(f"{kind}/{reference['name']}")
    if found is None and not reference.get("optional"):
        raise MissingReference(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
    data = (found or {}).get("data", {})
    return {key: base64.b64decode(value).decode() if kind == "secrets" else value for key, value in data.items()}
