"""A real MLflow server, a registry in a separate process, and small model artifacts made by hand."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2.registry.v1 import registry_service_pb2_grpc
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_registry.settings import RegistrySettings

END_TOKEN = 256
PROVENANCE = {
    "step": 20,
    "validation_loss": 3.25,
    "initial_validation_loss": 10.5,
    "checkpoint_digest": "c" * 64,
    "dataset_digest": "d" * 64,
    "tokenizer_digest": "e" * 64,
    "architecture": {"n_layer": 2, "n_embd": 8},
    "train_config": {"learning_rate": 0.0006, "steps": 20, "sampling": {"top_k": 40}},
    "validations": [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 3.25}],
    "samples": ["Grüße", "zwei"],
}


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    options = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files"))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), *options],
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(f"{uri}/health") or server.poll() is not None, 120)
    assert server.poll() is None, (folder / "log").read_text()
    yield uri
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()


def byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabularies, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    by_byte = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [by_byte[byte] for byte in range(256)]


def write_tokenizer(path: Path) -> None:
    """A tokenizer whose token ids are the bytes themselves."""
    tokenizer = Tokenizer(models.BPE({text: byte for byte, text in enumerate(byte_characters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))


class Artifacts:
    """Makes artifacts under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._store = ArtifactStore(root.as_uri(), [root.as_uri()], root / "scratch")
        self._made = 0

    def make(self, kind: str, files: Mapping[str, str | bytes | Path], parents: Sequence[str] = ()) -> str:
        """Makes an artifact, of models as its parents."""
        self._made += 1
        made_from = [self._store.open("parents", uri, "model") for uri in parents]
        with self._store.create(f"made-{self._made}", kind, kind, {}, made_from) as writer:
            for name, content in files.items():
                path = writer.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    content.rename(path)
                else:
                    path.write_bytes(content.encode() if isinstance(content, str) else content)
            return writer.commit().uri

    def model(self, provenance: Mapping | None = PROVENANCE, saved_model: Path | None = None, **changes) -> str:
        tokenizer = self.root / "tokenizer.json"
        write_tokenizer(tokenizer)
        files: dict = {
            "config.json": json.dumps({"eos_token_id": END_TOKEN}),
            "tokenizer.json": tokenizer,
            "model.safetensors": b"weights",
        }
        if saved_model is None:
            files["saved_model/saved_model.pb"] = b"graph"
        else:
            files |= {f"saved_model/{p.relative_to(saved_model)}": p.read_bytes() for p in saved_model.rglob("*.*")}
        if provenance is not None:
            files["model.json"] = json.dumps(provenance)
        files |= changes
        return self.make("model", {name: content for name, content in files.items() if content is not None})

    def logs(self, lines: list[Mapping]) -> str:
        return self.make("logs", {"metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})


@pytest.fixture
def artifacts(tmp_path) -> Artifacts:
    root = tmp_path / "artifacts"
    root.mkdir()
    return Artifacts(root)


@pytest.fixture(autouse=True)
def forgotten_addresses() -> Iterator[None]:
    """Takes back the addresses that MLflow keeps for the whole process, in variables that children inherit too."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def make_unconnected_context(artifacts, tmp_path) -> Callable[..., JobContext]:
    """Contexts to run the job's function in this process, without a server of MLflow."""

    def make(
        job_id: str, interruption: Interruption | None = None, uri: str = "http://127.0.0.1:1", label_rules: str = ""
    ) -> JobContext:
        settings = RegistrySettings(
            artifact_root=str(artifacts.root),
            mlflow_tracking_uri=uri,
            database_url=f"sqlite:///{tmp_path / 'registry.db'}",
            label_rules=label_rules,
        )
        identity = JobIdentity(
            service="registry", job_id=job_id, run_id=f"run-of-{job_id}", request_digest="f" * 64, attempt=1
        )
        return JobContext(identity, settings, lambda _: None, interruption or Interruption())

    return make


@pytest.fixture
def make_context(make_unconnected_context, mlflow_uri) -> Callable[..., JobContext]:
    """The same, with a real server."""
    return partial(make_unconnected_context, uri=mlflow_uri)


class RegistryProcess:
    """`python -m gpt2_registry`, and its stubs."""

    def __init__(self, folder: Path, artifact_root: Path, mlflow_uri: str, environment: Mapping[str, str]) -> None:
        self.database = folder / "registry.db"
        port = free_port()
        self._log = (folder / "registry.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpt2_registry"],
            stdout=self._log,
            stderr=self._log,
            env={
                **os.environ,
                "GPT2_LISTEN": f"127.0.0.1:{port}",
                "GPT2_ARTIFACT_ROOT": str(artifact_root),
                "GPT2_DATABASE_URL": f"sqlite:///{self.database}",
                "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
                "GPT2_MLFLOW_TRACKING_URI": mlflow_uri,
                **environment,
            },
        )
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(timeout=60)
        self.stub = registry_service_pb2_grpc.RegistryServiceStub(channel)
        self._jobs = jobs_service_pb2_grpc.JobsServiceStub(channel)
        self.metadata: list[tuple[str, str]] = []

    def register(self, **fields) -> job_pb2.Job:
        """Registers and waits for the end."""
        job = self.stub.RegisterModel(pb.RegisterModelRequest(**fields), metadata=self.metadata).job
        request = jobs_service_pb2.WatchJobRequest(job_id=job.job_id)
        for response in self._jobs.WatchJob(request, metadata=self.metadata):
            job = response.job
        return job

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


@pytest.fixture
def start_registry(tmp_path, artifacts) -> Iterator[Callable[..., RegistryProcess]]:
    started: list[RegistryProcess] = []

    def start(uri: str, **environment: str) -> RegistryProcess:
        folder = tmp_path / f"registry-{len(started)}"
        folder.mkdir()
        started.append(RegistryProcess(folder, artifacts.root, uri, environment))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="session")
def shared_artifacts(tmp_path_factory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("shared-artifacts"))


@pytest.fixture(scope="session")
def shared_registry(tmp_path_factory, shared_artifacts, mlflow_uri) -> Iterator[RegistryProcess]:
    """A registry for all tests whose models have their own names: its start and its import of MLflow take seconds."""
    process = RegistryProcess(tmp_path_factory.mktemp("shared-registry"), shared_artifacts.root, mlflow_uri, {})
    yield process
    process.close()
