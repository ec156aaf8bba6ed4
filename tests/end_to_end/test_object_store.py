"""The whole pipeline on an object store: text, artifacts and models in S3, on a server that speaks its protocol."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import grpc
import pytest
from free_ports import free_port

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.pipelines.specification import parse_specification

from .local_servers import database_dump, holders, wait_for

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-s3-key",
    "GPT2_AUTH_TOKEN": "canary-of-the-services-token",
    "GPT2_MONGODB_URI": "mongodb://gpt2:canary-of-mongodb@127.0.0.1:1/",
    "MLFLOW_TRACKING_USERNAME": "gpt2",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow",
    "PGPASSWORD": "canary-of-postgresql",
}
"""A secret for each variable that takes one, here or in a service."""
DATABASE_PASSWORD = "canary-of-a-database"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "gpt2", "AWS_DEFAULT_REGION": "us-east-1", **SECRETS}


@pytest.fixture
def object_store(monkeypatch) -> Iterator[fsspec.AbstractFileSystem]:
    port = free_port()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 300)
        store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        store.mkdir("gpt2")
        yield store
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def database(request) -> str:
    """The services' database, where PostgreSQL is installed: its address with a password."""
    try:
        server = request.getfixturevalue("postgresql")
    except pytest.skip.Exception:
        return ""
    return server.replace("postgresql://gpt2@", f"postgresql+psycopg://gpt2:{DATABASE_PASSWORD}@")


@pytest.fixture
def services(object_store, stack, tmp_path, monkeypatch, database) -> Iterator[ClientSettings]:
    """The four services with all that they keep in the object store."""
    addresses = {name: f"127.0.0.1:{free_port()}" for name in DEFAULT_PORTS}
    processes = []
    for name, address in addresses.items():
        monkeypatch.setenv(f"GPT2_{name.upper()}_ADDRESS", address)
        environment = {
            **os.environ,
            "GPT2_LISTEN": address,
            "GPT2_ARTIFACT_ROOT": "s3://gpt2/artifacts",
            "GPT2_ALLOWED_ROOTS": "s3://gpt2/texts",
            "GPT2_SCRATCH_FOLDER": str(tmp_path / name),
            "GPT2_DATABASE_URL": database or f"sqlite:///{tmp_path / name}.db",
            "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
            "GPT2_MLFLOW_TRACKING_URI": stack.addresses.mlflow_uri,
        }
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", f"gpt2_{name}"]
            processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log))
    monkeypatch.setenv("GPT2_CLIENT_TOKEN", SECRETS["GPT2_AUTH_TOKEN"])
    client = ClientSettings.from_environment()
    try:
        for name in addresses:
            wait_for(lambda name=name: answers(name, client), 300)
        yield client
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def answers(name: str, client: ClientSettings) -> bool:
    try:
        with connect(name, client) as service:
            return bool(service.version())
    except (ServiceError, grpc.RpcError):
        return False


def test_a_pipeline_keeps_all_in_an_object_store_and_no_secret_anywhere(
    services, object_store, database, stack, tmp_path, caplog
):
    from gpt2_orchestration.runners.local import run_pipeline  # loads TFX and TensorFlow

    caplog.set_level(logging.DEBUG)
    for number in range(20):
        object_store.pipe_file(f"gpt2/texts/{number}.txt", f"{number} bottles of beer on the wall, ".encode() * 40)
    specification = parse_specification(
        {
            "name": "object-store",
            "import_files": {"uris": ["s3://gpt2/texts"]},
            "train_tokenizer": {"vocabulary_size": 300},
            "encode_corpus": {"validation_fraction": 0.5},
            "train_model": {
                "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16},
                "config": {"steps": 20, "batch_size": 2, "learning_rate": 0.01},
            },
            "register_model": {"model_name": "object-store", "label": "staging"},
        }
    )
    facts = ask_services(specification, services)
    settings = PipelineSettings(root=tmp_path / "pipeline", metadata=tmp_path / "metadata.db")
    run_pipeline("local", specification, facts, settings)
    manifests = [Path(path) for path in object_store.find("gpt2/artifacts") if path.endswith("/manifest.json")]
    kinds = {path.parent.name for path in manifests}
    assert kinds >= {"corpus", "tokenizer", "dataset", "checkpoint", "logs", "samples", "model"}
    with connect("registry", services) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name="object-store", label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1
    # The folders that jobs worked in here, named as the jobs, are gone: the store alone holds what was made.
    assert [path for name in DEFAULT_PORTS for path in (tmp_path / name).glob("object-store-*~*")] == []
    secrets = [DATABASE_PASSWORD, *(value for name, value in SECRETS.items() if name != "MLFLOW_TRACKING_USERNAME")]
    assert places_of(["object-store"], object_store, database, stack.folder, tmp_path, caplog.text) >= {
        "log",
        "store",
        "database",
        "metadata.db",
        "trainer.log",
    }, "the search finds nothing at all"
    assert places_of(secrets, object_store, database, stack.folder, tmp_path, caplog.text) == set()


def places_of(secrets: list[str], store, database: str, stack: Path, folder: Path, log: str) -> set[str]:
    """Where a text is, in all that a run leaves: the store, the databases, MLflow, TFX's files, everybody's logs."""
    places = {Path(found.partition(": ")[0]).name for place in (stack, folder) for found in holders(secrets, place)}
    content = b"".join(path.encode() + store.cat_file(path) for path in store.find("gpt2"))
    dump = database_dump(database.replace("+psycopg", "")) if database else "object-store"
    texts = {"log": log.encode(), "store": content, "database": dump.encode()}
    return places | {name for name, text in texts.items() if any(secret.encode() in text for secret in secrets)}
