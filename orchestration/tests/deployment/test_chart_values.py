"""The values of the Helm chart: its schema knows them all, and defaults are those of the manifests.

What the chart makes of them is held against the manifests in test_chart.py, with Helm.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2_orchestration.client.addresses import DEFAULT_PORTS

MANIFESTS = "orchestration/kubernetes"


@pytest.fixture(scope="module")
def chart(root: Path) -> Path:
    return root / MANIFESTS / "chart"


@pytest.fixture(scope="module")
def values(chart: Path) -> dict[str, Any]:
    return yaml.safe_load((chart / "values.yaml").read_text())


def read(root: Path, file: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of a file of the manifests, by kind and name."""
    entries = yaml.safe_load_all((root / MANIFESTS / file).read_text())
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in entries}


def containers(root: Path, file: str, name: str) -> dict[str, dict[str, Any]]:
    pod = read(root, file)["Deployment", name]["spec"]["template"]["spec"]
    return {container["name"]: container for container in pod["containers"]}


@pytest.mark.parametrize("service", DEFAULT_PORTS)
def test_a_service_has_the_resources_and_secrets_of_the_manifests(root, values, service):
    container = containers(root, f"base/{service}.yaml", service)[service]
    assert values["services"][service]["resources"] == container["resources"]
    secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry}
    named = {"GPT2_DATABASE_URL": values["postgresql"]["urls"][service]}
    named |= dict.fromkeys(("GPT2_AUTH_TOKEN", "GPT2_CLIENT_TOKEN"), values["authentication"]["sharedToken"])
    named |= {"GPT2_MONGODB_URI": values["mongodb"]["uri"]} if service == "exporter" else {}
    assert secrets == {name: {"name": value["secret"], "key": value["key"]} for name, value in named.items()}


def test_the_dashboard_has_the_resources_of_the_manifests(root, values):
    found = containers(root, "base/dashboard.yaml", "dashboard")
    assert values["dashboard"]["resources"] == found["dashboard"]["resources"]
    assert values["dashboard"]["tensorboard"]["resources"] == found["tensorboard"]["resources"]


@pytest.mark.parametrize("overlay", ["gpu", "multi-gpu"])
def test_the_trainer_on_gpus_has_the_resources_of_its_overlay(root, chart, overlay):
    resources = containers(root, f"overlays/{overlay}/trainer.yaml", "trainer")["trainer"]["resources"]
    own = yaml.safe_load((chart / "overlays" / f"{overlay}.yaml").read_text())
    given = own["services"]["trainer"]["resources"]
    assert given | {"limits": given["limits"] | {"nvidia.com/gpu": own["gpus"]["count"]}} == resources


def test_claims_have_the_sizes_of_the_manifests(root, values):
    found = read(root, "base/artifacts.yaml") | read(root, "components/s3/scratch.yaml")
    sizes = {name: entry["spec"]["resources"]["requests"]["storage"] for (_, name), entry in found.items()}
    scratch = {f"scratch-{name}": value["size"] for name, value in values["storage"]["scratch"].items()}
    assert sizes == {"artifacts": values["storage"]["artifacts"]["size"], **scratch}


def test_every_overlay_has_its_values(root, chart):
    overlays = {folder.name for folder in (root / MANIFESTS / "overlays").iterdir()}
    assert {file.stem for file in (chart / "overlays").iterdir()} == overlays


def test_the_schema_knows_every_value(chart):
    """A value that the schema forgets is refused as soon as somebody sets it."""
    schema = json.loads((chart / "values.schema.json").read_text())

    def unknown(value: Any, part: dict[str, Any], path: str) -> list[str]:
        part = schema["definitions"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if not isinstance(value, dict) or "properties" not in part:
            return []
        missing = [f"{path}.{key}" for key in value if key not in part["properties"]]
        known = [key for key in value if key in part["properties"]]
        return missing + [
            text for key in known for text in unknown(value[key], part["properties"][key], f"{path}.{key}")
        ]

    assert unknown(yaml.safe_load((chart / "values.yaml").read_text()), schema, "") == []


def test_the_chart_has_this_version(chart, root):
    version = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)[1]
    content = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert content["appVersion"] == version
    assert content["version"] == re.sub(r"(?<=\d)(a|b|rc)", r"-\1", version)
