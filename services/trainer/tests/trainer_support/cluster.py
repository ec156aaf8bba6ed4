"""A stand-in for a cluster with Kubeflow Trainer: its API over HTTP, its pods local processes.

It allows what the Role of the manifests allows, takes TrainJobs that fit Kubeflow's own schema, and makes the pod of a
node again as a Job does: not when it has ended with 0 or 1, and `backoff_limit` times otherwise. A deleted TrainJob is
gone at once, and its pods when their processes have ended. `tests/cluster` has the real controllers.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from .pods import free_port

COMPONENT = Path(__file__).resolve().parents[4] / "orchestration" / "kubernetes" / "components" / "trainjob"
TOKEN = "canary-token-of-the-service-account"
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+/namespaces/gpt2/"
    r"(?P<kind>trainjobs|jobsets|jobs|pods)(/(?P<name>[^/]+))?(?P<log>/log)?"
)


@dataclass
class Pod:
    name: str
    log: Path
    created: str
    node: int = 0
    process: subprocess.Popen | None = None

    def describe(self) -> dict:
        status = {"name": "node", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
        if self.process is not None:
            code = self.process.poll()
            reason = {0: "Completed", -9: "OOMKilled"}.get(code, "Error")
            ended = {"exitCode": code if code is None or code >= 0 else 128 - code, "reason": reason}
            status["state"] = {"running": {}} if code is None else {"terminated": ended}
        annotations = {"batch.kubernetes.io/job-completion-index": str(self.node)}
        metadata = {"name": self.name, "creationTimestamp": self.created, "annotations": annotations}
        return {"metadata": metadata, "status": {"containerStatuses": [status]}}


@dataclass
class Run:
    """A TrainJob and what has become of it."""

    content: dict
    pods: list[Pod] = field(default_factory=list)
    deleted: bool = False
    coordinator: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")

    @property
    def nodes(self):
        return self.content["spec"]["trainer"]["numNodes"]

    def pods_of(self, node):
        """The pods of one node, the oldest first."""
        return [pod for pod in self.pods if pod.node == node]

    def lives(self):
        """Whether one of its pods still runs."""
        return any(pod.process is not None and pod.process.poll() is None for pod in self.pods)


class Cluster:
    """The stand-in, until it is closed.

    Args:
        folder: Where pods work, and their logs lie.
        schema: Kubeflow's schema of a TrainJob; None where it is not at hand.
        secrets: Values by name of a Secret and key in it.
        pod_variables: What the runtime adds to the environment of pods.
    """

    def __init__(self, folder, schema, secrets, pod_variables):
        self.folder, self.secrets, self.pod_variables = folder, secrets, pod_variables
        self.validator = None if schema is None else jsonschema.Draft202012Validator(schema)
        documents = yaml.safe_load_all((COMPONENT / "rbac.yaml").read_text())
        [role] = [document for document in documents if document["kind"] == "Role"]
        self.allowed = {
            (verb, group, resource)
            for rule in role["rules"]
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        self.called, self.created, self.runs, self.deleted = set(), [], {}, []
        self.backoff_limit, self.outages, self.log_outages, self.pulls_images = 0, 0, 0, True
        self.refusal = ""
        self.streams, self.silent_streams = count(), 0
        self.lock = threading.RLock()
        credentials = folder / "credentials"
        credentials.mkdir()
        (credentials / "token").write_text(TOKEN)
        (credentials / "namespace").write_text("gpt2")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.variables = {
            "GPT2_TRAINING_BACKEND": "trainjob",
            "GPT2_TRAINJOB_IMAGE": "registry.example.com/gpt2-trainer-gpu:1",
            "GPT2_TRAINJOB_SECRETS": "CANARY=gpt2-canary/value",
            "GPT2_KUBERNETES_API": f"http://127.0.0.1:{self.server.server_port}",
            "GPT2_KUBERNETES_CREDENTIALS": str(credentials),
        }

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for run in [*self.runs.values(), *self.deleted]:
            for pod in run.pods:
                if pod.process is not None and pod.process.poll() is None:
                    pod.process.kill()
                    pod.process.wait()

    def create(self, content):
        if self.refusal:
            return 403, {"kind": "Status", "reason": "Forbidden", "message": self.refusal}
        problems = [] if self.validator is None else [error.message for error in self.validator.iter_errors(content)]
        name = content["metadata"]["name"]
        if problems or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
            return 422, {"message": "; ".join(problems) or name}
        with self.lock:
            if name in self.runs:
                return 409, {"reason": "AlreadyExists"}
            content["metadata"] |= {"uid": uuid.uuid4().hex, "resourceVersion": "1"}
            self.created.append(content)
            self.runs[name] = Run(content)
            for node in range(self.runs[name].nodes):
                self._add_pod(self.runs[name], node)
        return 201, content

    def state(self, run):
        """The object as it is now; the cluster's controllers have looked at it meanwhile."""
        with self.lock:
            self._reconcile(run)
            status = {"conditions": []}
            last = [run.pods_of(node)[-1] for node in range(run.nodes)]
            codes = [None if pod.process is None else pod.process.poll() for pod in last]
            failed = [code for code in codes if code]
            if failed or None not in codes:
                code = failed[0] if failed else 0
                ended = "Failed" if failed else "Complete"
                for pod in last:
                    if pod.process is not None:
                        pod.process.terminate()
                condition = {
                    "type": ended,
                    "status": "True",
                    "reason": "JobSetEnded",
                    "message": f"job ended with {code}",
                }
                status["conditions"].append(condition)
            return {**run.content, "status": status}

    def find(self, name):
        """A TrainJob; None when there is none, or it was deleted."""
        with self.lock:
            return self.runs.get(name)

    def pods_of(self, name):
        """The pods with a TrainJob's label: also those of one that was deleted, until they have ended."""
        with self.lock:
            found = [run for run in self.deleted if run.content["metadata"]["name"] == name and run.lives()]
            return [pod for run in [*found, *filter(None, [self.runs.get(name)])] for pod in run.pods]

    def delete(self, run, uid, policy):
        assert policy == "Background", "Kubeflow Trainer makes the pods of a terminating TrainJob again"
        with self.lock:
            if uid and uid != run.content["metadata"]["uid"]:
                return 409, {"reason": "Conflict"}
            run.deleted = True
            self.deleted.append(self.runs.pop(run.content["metadata"]["name"]))
            for pod in run.pods:
                if pod.process is not None:
                    pod.process.terminate()
            return 200, {}

    def fall_silent(self):
        """Has the open streams neither end nor bring anything, as a NAT does that has forgotten their connections."""
        self.silent_streams = next(self.streams)

    def passes(self, stream):
        """Whether what is written to a stream arrives."""
        return stream >= self.silent_streams

    def _reconcile(self, run):
        for node in range(run.nodes):
            pods = run.pods_of(node)
            last = pods[-1]
            if last.process is None and self.pulls_images and not run.deleted:
                self._start(run, last)
            code = None if last.process is None else last.process.poll()
            if code not in (None, 0, 1) and not run.deleted and len(pods) <= self.backoff_limit:
                self._add_pod(run, node)

    def _add_pod(self, run, node):
        name = f"{run.content['metadata']['name']}-node-0-{node}-{len(run.pods_of(node))}"
        log = self.folder / f"{name}.{uuid.uuid4().hex}.log"
        run.pods.append(Pod(name, log, datetime.now(UTC).isoformat(), node))

    def _start(self, run, pod):
        trainer = run.content["spec"]["trainer"]
        rank = {
            "JAX_NUM_PROCESSES": str(run.nodes),
            "JAX_PROCESS_ID": str(pod.node),
            "JAX_COORDINATOR_ADDRESS": run.coordinator,
        }
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.pod_variables, **rank}
        for entry in trainer["env"]:
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            environment[entry["name"]] = (
                self.secrets[reference["name"], reference["key"]] if reference else entry["value"]
            )
        command = [sys.executable if word == "python" else word for word in trainer["command"]]
        with pod.log.open("wb") as log:
            pod.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *_):
        pass

    def handle_call(self):
        cluster, url = self.cluster, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        place = PATH.fullmatch(url.path)
        length = int(self.headers.get("Content-Length", 0))
        content = json.loads(self.rfile.read(length)) if length else {}
        if cluster.outages:
            cluster.outages -= 1
            return self.answer(503, {"message": "etcd is away"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or place is None:
            return self.answer(401 if place else 404, {})
        kind = place["kind"] + (place["log"] or "")
        reading = "get" if place["name"] else "watch" if "watch" in query else "list"
        verb = {"POST": "create", "DELETE": "delete"}.get(self.command, reading)
        cluster.called.add((verb, place["group"] or "", kind))
        if (verb, place["group"] or "", kind) not in cluster.allowed:
            return self.answer(403, {"message": f'{kind} is forbidden: User "trainer" cannot {verb} resource "{kind}"'})
        if place["kind"] == "pods":
            return self.pods(place["name"], query)
        if place["kind"] != "trainjobs":
            return self.answer(200, {"items": []})
        if verb == "create":
            return self.answer(*cluster.create(content))
        if verb == "watch":
            return self.watch(query["fieldSelector"].removeprefix("metadata.name="), float(query["timeoutSeconds"]))
        if verb == "list":
            key, _, value = query["labelSelector"].partition("=")
            found = [
                run.content for run in cluster.runs.values() if run.content["metadata"]["labels"].get(key) == value
            ]
            return self.answer(200, {"items": found})
        run = cluster.find(place["name"])
        if run is None:
            return self.answer(404, {"reason": "NotFound"})
        if verb == "delete":
            return self.answer(
                *cluster.delete(run, content.get("preconditions", {}).get("uid", ""), content["propagationPolicy"])
            )
        return self.answer(200, cluster.state(run))

    do_GET = do_POST = do_DELETE = handle_call  # noqa: N815 - names of http.server

    def pods(self, name, query):
        if name is None:
            key, _, value = query["labelSelector"].partition("=")
            assert key == "jobset.sigs.k8s.io/jobset-name"
            return self.answer(200, {"items": [pod.describe() for pod in self.cluster.pods_of(value)]})
        [pod] = [pod for run in list(self.cluster.runs.values()) for pod in run.pods if pod.name == name]
        if self.cluster.log_outages:
            self.cluster.log_outages -= 1
            return self.answer(500, {"message": "the kubelet is away"})
        if pod.process is None:
            return self.answer(400, {"message": "container is waiting to start"})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"gpt2-trainer: {a line that begins before the part of the log that is kept\n")
        stream = next(self.cluster.streams)
        with pod.log.open("rb") as log:
            while True:
                ended = pod.process.poll() is not None
                chunk = log.read()
                try:
                    if self.cluster.passes(stream):
                        self.wfile.write(chunk)
                except OSError:
                    return None
                if self.cluster.passes(stream) and ((ended and not chunk) or "true" not in query["follow"]):
                    return None
                time.sleep(0.02)

    def watch(self, name, seconds):
        self.send_response(200)
        self.end_headers()
        stream, before, until = next(self.cluster.streams), None, time.monotonic() + seconds
        with suppress(OSError):
            while time.monotonic() < until or not self.cluster.passes(stream):
                run = self.cluster.find(name)
                event = {"type": "DELETED"} if run is None else {"type": "MODIFIED", "object": self.cluster.state(run)}
                if event != before and self.cluster.passes(stream):
                    self.wfile.write(json.dumps(event).encode() + b"\n")
                before = event
                if run is None:
                    return
                time.sleep(0.05)

    def answer(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
