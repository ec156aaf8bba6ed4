"""The services of an overlay in a namespace of the node, with all that they need, and runs over them."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings
from tests.cluster.deployment import Administrator
from tests.cluster.waiting import wait_for
from tests.containers.runs import finish, insert_documents, jobs_of, start_run

from .stores import BUCKET, OBJECT_STORE, PASSWORD, SERVERS, TOKEN, object_store_policy, secrets
from .volumes import Volumes

NO_OVERLAY = "no-overlay"
"""For tests that install the services themselves."""
_READY_SECONDS = 900
_RUN_SECONDS = 1200
_INTERVAL_SECONDS = 1.0
_POLL_SECONDS = 0.3
"""Between two questions for a job: a training must not end before a test acts."""
_REQUESTS = {"requests": {"cpu": "100m", "memory": "1Gi"}}
"""Those of the trainer, in place of the overlay's, which are for larger models."""
_ARTIFACTS = ("artifacts",)
_SCRATCH = ("scratch-exporter", "scratch-tokenizer", "scratch-trainer", "scratch-registry", "scratch-trainings")
_SHOWN_EVENTS = 40


class Services:
    """The services in their namespace.

    Attributes:
        namespace: Where they are.
        volumes: Of their claims.
        ready_seconds: What the pods of the overlay needed.

    Args:
        administrator: Acts on the cluster.
        folder: Where the volumes lie.
    """

    namespace = "gpt2"

    def __init__(self, administrator: Administrator, folder: Path) -> None:
        self._administrator = administrator
        self.volumes = Volumes(administrator.control_plane.api, folder, self.namespace)
        self.kubectl = partial(administrator.control_plane.kubectl, "--namespace", self.namespace)
        self.ready_seconds = 0.0

    def prepare(self, with_object_store: bool = False, megabytes: int = 0) -> None:
        """Makes the namespace, and in it all that the manifests ask for.

        Args:
            with_object_store: Whether artifacts will be in an S3 store.
            megabytes: Size of the volume of the artifacts, which is in memory then.
        """
        self._administrator.create_namespace(self.namespace)
        self.volumes.create(_SCRATCH if with_object_store else _ARTIFACTS, megabytes)
        objects = [*secrets(), *(item for server in SERVERS for item in server.objects())]
        if with_object_store:
            objects += [*OBJECT_STORE.objects(), object_store_policy()]
        self.kubectl("apply", "--server-side", "--filename=-", content=yaml.safe_dump_all(objects))
        self.wait_until_ready()
        if with_object_store:
            self._create_bucket()
        insert_documents(PASSWORD, self.address("mongodb"))

    def apply(self, overlay: str) -> None:
        """Applies an overlay, and waits until each pod is ready."""
        began = time.monotonic()
        self._administrator.apply_overlay(overlay, self.namespace, **_changes(overlay))
        self.wait_until_ready()
        self.ready_seconds = time.monotonic() - began

    def remove(self) -> None:
        """Deletes the namespace with all in it, and its volumes."""
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")
        # Nothing of them is needed any more, so that nobody waits for a graceful shutdown.
        self.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
        path = f"/api/v1/namespaces/{self.namespace}"
        self.wait(lambda: self._administrator.control_plane.api.get(path) is None)
        self.volumes.remove()

    @property
    def client(self) -> ClientSettings:
        """Calls the services by their Services."""
        addresses = {name: f"{self.address(name)}:{port}" for name, port in DEFAULT_PORTS.items()}
        return ClientSettings(addresses=addresses, token=TOKEN)

    def address(self, service: str) -> str:
        """A Service's address."""
        path = f"/api/v1/namespaces/{self.namespace}/services/{service}"
        found = self._administrator.control_plane.api.get(path)
        assert found is not None, f"there is no Service {service}"
        return str(found["spec"]["clusterIP"])

    def objects(self, *kinds: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of some kinds, such as `pods`."""
        return self._administrator.objects(self.namespace, *kinds, selector=selector)

    def pods(self, service: str) -> list[dict[str, Any]]:
        """The pods of a service, also those that terminate."""
        return self.objects("pods", selector=f"app.kubernetes.io/name={service}")

    def wait_until_ready(self) -> None:
        """Waits until each Deployment has its replicas, all ready and of its newest template."""

        self.wait(lambda: all(map(_is_rolled_out, self.objects("deployments"))))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Waits for what the cluster does in its own time. Raises AssertionError with its state."""
        wait_for(condition, self.state, _READY_SECONDS, _INTERVAL_SECONDS)

    def start_run(self, run_id: str, **options: Any) -> None:
        """Starts a planned run."""
        start_run(run_id, client=self.client, **options)

    def finish(self, run_id: str) -> Mapping[str, Job]:
        """Waits until a run has registered its version. Returns its jobs."""
        try:
            return finish(run_id, _RUN_SECONDS, self.client)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from error

    def wait_for_job(self, run_id: str, kind: str, condition: Callable[[Job], Any], what: str) -> Job:
        """Waits until a condition holds for a job of a run. A service may be away meanwhile."""
        seen: list[Job] = []

        def found() -> Job | None:
            job = jobs_of(run_id, self.client).get(kind)
            if job is None:
                return None
            seen[:] = [job]
            return job if condition(job) else None

        def missing() -> str:
            return f"{what}, of {run_id}: {seen}\n{self.state()}"

        job = wait_for(found, missing, _RUN_SECONDS, _POLL_SECONDS)
        assert job is not None
        return job

    def output_folder(self, jobs: Mapping[str, Job], kind: str, name: str) -> Path:
        """The folder of an artifact on the volume that all services share."""
        [uri] = [output.uri for output in jobs[kind].outputs if output.name == name]
        return self.volumes.folder("artifacts") / Path(urlsplit(uri).path).relative_to("/data")

    def state(self) -> str:
        """What is not well, with the last events."""
        lines = [self.kubectl("get", "pods", "--output=wide")]
        events = sorted(self.objects("events"), key=lambda item: item["metadata"]["creationTimestamp"])
        lines += [f"{item['involvedObject']['name']}: {item.get('message')}" for item in events[-_SHOWN_EVENTS:]]
        for pod in self.objects("pods"):
            if not all(item["ready"] for item in pod["status"].get("containerStatuses", [])):
                name = pod["metadata"]["name"]
                try:
                    lines.append(self.kubectl("logs", name, "--all-containers", "--tail=15"))
                except AssertionError as error:
                    lines.append(str(error))
        return "\n".join(lines)

    def _create_bucket(self) -> None:
        code = (
            "import boto3; boto3.client('s3', endpoint_url='http://localhost:9000', region_name='us-east-1',"
            f" aws_access_key_id='key', aws_secret_access_key='key').create_bucket(Bucket='{BUCKET}')"
        )
        self.kubectl("exec", f"deployment/{OBJECT_STORE.name}", "--", "python", "-c", code)


def _is_rolled_out(deployment: Mapping[str, Any]) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return is_seen and counts == [wanted] * len(counts)


def _changes(overlay: str) -> dict[str, Any]:
    """What a kustomization on top of an overlay says, as an operator's own would."""
    variables = []
    if "trainjob" in overlay:
        variables += [{"name": "GPT2_TRAINJOB_MEMORY", "value": "3Gi"}, {"name": "GPT2_TRAINJOB_CPU", "value": "100m"}]
    container = {"name": "trainer", "env": variables, "resources": _REQUESTS}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "trainer"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    changes: dict[str, Any] = {"patches": [{"patch": yaml.safe_dump(patch)}]}
    if "s3" in overlay:
        literals = [f"AWS_ENDPOINT_URL=http://{OBJECT_STORE.name}:{OBJECT_STORE.port}"]
        generator = {"name": "gpt2", "namespace": "gpt2", "behavior": "merge", "literals": literals}
        changes["configMapGenerator"] = [generator]
    return changes
