"""The demonstration: starts the embedded stack, and takes text from MongoDB to a registered, labelled model.

It does what a user would do: documents are written to MongoDB, the from-scratch pipeline runs through TFX, and the
model that MLflow loads by its label generates text.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pymongo import MongoClient
from rich.console import Console

from gpt2.registry.v1 import registry_service_pb2
from gpt2_contracts.metrics import INITIAL_VALIDATION_LOSS, VALIDATION_LOSS
from gpt2_orchestration.client.addresses import address_variable
from gpt2_orchestration.client.service_client import ClientSettings, connect
from gpt2_orchestration.demo.documentation import Document, documents
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.pipelines.specification import load_specification
from gpt2_orchestration.pipelines.validation import validate_stages
from gpt2_orchestration.runners.library_logs import quiet_libraries
from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.running import running_stack
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackSettings

MIN_BYTES = 5_000_000
"""Bytes of text to load into MongoDB."""

SPECIFICATION = Path(__file__).with_name("demo.yaml")

_DATABASE = "demo"
_COLLECTION = "documentation"
_PROMPTS = ("", "class ", "Return the ")
_BATCH = 500
_NEEDED_FIRST = ("mongodb", "exporter", "tokenizer", "trainer", "registry")
"""Processes to wait for; MLflow starts slowest, and only the last stage needs it."""


def run_demo(folder: Path, ports: Mapping[str, int] = DEFAULT_PORTS) -> None:
    """Runs the demonstration. The last line that it prints is the result.

    Args:
        folder: Folder of everything it creates; existing files are kept.
        ports: Preferred port of each process of the stack.

    Raises:
        StackError, ServiceError, JobFailed: A process, call or job failed.
    """
    began = time.monotonic()
    _say("starting the embedded stack (MongoDB, Kafka, MLflow, TensorBoard and four services)")
    specification = load_specification(SPECIFICATION)
    request = specification.requests["register_model"]
    with running_stack(StackSettings(folder=folder, ports=ports), wait_for=_NEEDED_FIRST) as addresses:
        _load(addresses.mongodb_uri, documents(MIN_BYTES))
        client = ClientSettings(addresses=service_addresses(addresses))
        with _environment(addresses):
            _train(folder, client)
        with connect("registry", client) as registry:
            version = registry.call(
                "GetModelVersion",
                registry_service_pb2.GetModelVersionRequest(model_name=request.model_name, label=request.label),
            ).model_version
        with quiet_libraries(folder / "logs" / "tfx.log"):
            texts = _generate(addresses.mlflow_uri, request.model_name, request.label)
        _show(texts, f"models:/{request.model_name}@{request.label}")
        _say_where(folder, addresses)
    seconds = time.monotonic() - began
    before, after = version.metrics[INITIAL_VALIDATION_LOSS], version.metrics[VALIDATION_LOSS]
    print(
        f"demo: registered {version.model_name} version {version.version} label {request.label} "
        f"validation-loss {before:.3f} -> {after:.3f} seconds {seconds:.0f}",
        flush=True,
    )


def service_addresses(addresses: StackAddresses) -> dict[str, str]:
    """Addresses of a stack's services, by name."""
    return {
        "exporter": addresses.exporter,
        "tokenizer": addresses.tokenizer,
        "trainer": addresses.trainer,
        "registry": addresses.registry,
    }


def _load(mongodb_uri: str, texts: Iterable[Document]) -> None:
    """Replaces the collection with the documents."""
    size = count = 0
    with MongoClient(mongodb_uri) as client:
        collection = client[_DATABASE][_COLLECTION]
        collection.drop()
        batch: list[dict[str, str]] = []
        for document in texts:
            batch.append({"_id": document.name, "text": document.text})
            size += len(document.text.encode())
            count += 1
            if len(batch) == _BATCH:
                collection.insert_many(batch)
                batch = []
        if batch:
            collection.insert_many(batch)
    _say(f"loaded {count:,} documents, {size / 1e6:.1f} MB, into MongoDB ({_DATABASE}.{_COLLECTION})")


def _train(folder: Path, client: ClientSettings) -> None:
    _say("running the pipeline through TFX")
    specification = load_specification(SPECIFICATION)
    validate_stages(specification.stages(), client)
    facts = ask_services(specification, client)
    # The demonstration does its work each time, without the cache.
    settings = PipelineSettings(root=folder / "pipelines", metadata=folder / "data" / "metadata.db", enable_cache=False)
    with quiet_libraries(folder / "logs" / "tfx.log"):
        # Imported here: TFX takes seconds to import, while the stack starts.
        from gpt2_orchestration.runners.local import run_pipeline

        run_pipeline("local", specification, facts, settings)


@contextmanager
def _environment(addresses: StackAddresses) -> Iterator[None]:
    """Sets the services' addresses for the pipeline's components."""
    variables = {address_variable(name): address for name, address in service_addresses(addresses).items()}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _generate(mlflow_uri: str, model_name: str, label: str) -> list[str]:
    """Generates from the registered model, through MLflow alone."""
    import mlflow

    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pyfunc.load_model(f"models:/{model_name}@{label}")
    texts: list[str] = model.predict(
        list(_PROMPTS), params={"max_tokens": 60, "temperature": 0.8, "top_k": 40, "seed": 1}
    )
    return texts


def _show(texts: Sequence[str], model_uri: str) -> None:
    _say(f"three samples from {model_uri}")
    for number, (prompt, text) in enumerate(zip(_PROMPTS, texts, strict=True), start=1):
        lines = [line for line in (prompt + text).splitlines() if line.strip()]
        print(f"\n  sample {number}", *lines, sep="\n    ", flush=True)
    print(flush=True)


def _say_where(folder: Path, addresses: StackAddresses) -> None:
    port = addresses.mlflow_uri.rpartition(":")[2]
    board = addresses.tensorboard_uri.rpartition(":")[2]
    dashboard = addresses.dashboard_uri.rpartition(":")[2]
    _say(f"everything is in {folder.absolute()}: artifacts/, logs/, data/ (MLflow, job stores, ML Metadata)")
    _say(f"to look at it: {sys.argv[0]} stack up --folder {folder}")
    _say(f"then the dashboard is at http://localhost:{dashboard}, MLflow at {port} and TensorBoard at {board}")


def _say(text: str) -> None:
    Console(file=sys.stdout, highlight=False, soft_wrap=True).print(text, markup=False)
