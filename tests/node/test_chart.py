"""The Helm chart on the node, with its default values: installed, upgraded in mid-training, uninstalled, and again."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from go_programs import HELM, install_go_program

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import connect

from .services import NO_OVERLAY, Services
from .training import SAVE_EVERY, Training, attempts, run_uninterrupted

pytestmark = [pytest.mark.process, pytest.mark.parametrize("services", [NO_OVERLAY], indirect=True)]
CHART = Path(__file__).resolve().parents[2] / "orchestration" / "kubernetes" / "chart"
RELEASE = "gpt2"
SECONDS = 900
COMPONENTS = ("exporter", "tokenizer", "trainer", "registry", "dashboard")


@pytest.fixture(scope="module")
def helm(control_plane, tmp_path_factory):
    """Calls Helm as the administrator."""
    program = install_go_program(HELM)
    access = control_plane.write_kubeconfig("helm", control_plane.api)
    folder = tmp_path_factory.mktemp("helm")
    homes = {name: str(folder) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}

    def call(*arguments):
        command = [program, *arguments, "--namespace", Services.namespace, "--kubeconfig", access]
        done = subprocess.run(
            command, env={**os.environ, **homes}, capture_output=True, text=True, timeout=SECONDS + 60
        )
        assert done.returncode == 0, f"helm {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout

    return call


def test_the_chart_is_installed_upgraded_and_uninstalled(services, helm, tell):
    wait = ["--wait", "--timeout", f"{SECONDS}s"]
    began = time.monotonic()
    notes = helm("install", RELEASE, CHART, *wait)
    tell(f"helm install: all pods ready after {time.monotonic() - began:.0f} s")
    assert "Secret gpt2 with auth-token, exporter-database-url" in notes
    began = time.monotonic()
    reference = run_uninterrupted(services, "uninterrupted")
    tell(f"chart: labelled after {time.monotonic() - began:.0f} s")

    training = Training(services, "upgraded", reference, tell)
    training.start()
    training.wait_for_step(SAVE_EVERY)
    before = pods(services)
    helm("upgrade", RELEASE, CHART, "--set", "settings.GPT2_LOG_LEVEL=DEBUG", *wait)
    assert not set(pods(services)) & set(before), "the ConfigMap has changed, and not all pods are new"
    training.require_same_end()
    helm("rollback", RELEASE, *wait)

    helm("uninstall", RELEASE, *wait)
    services.wait(lambda: not pods(services))
    left = services.objects("deployments", "services", "networkpolicies", "poddisruptionbudgets")
    assert [item for item in left if item["metadata"]["name"] in COMPONENTS] == []
    [claim] = services.objects("persistentvolumeclaims")
    assert claim["status"]["phase"] == "Bound"

    helm("install", RELEASE, CHART, *wait)
    with connect("registry", services.client) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name="upgraded", label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1
    services.start_run("reinstalled", steps=20)
    assert len(attempts(services, services.finish("reinstalled"))) == 1


def pods(services):
    """Ids of the chart's pods."""
    return [
        pod["metadata"]["uid"]
        for pod in services.objects("pods", selector=f"app.kubernetes.io/name in ({', '.join(COMPONENTS)})")
    ]
