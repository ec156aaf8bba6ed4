"""Packages that the start of a service and of a job's process imports: each is paid for at every start."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

_OF_JOBS = {
    *("annotated_types", "dotenv", "fsspec", "google", "grpc", "pydantic", "pydantic_core", "pydantic_settings"),
    *("typing_extensions", "typing_inspection"),
    *("gpt2", "gpt2_catalogue", "gpt2_common", "gpt2_contracts", "gpt2_rules"),
}
_OPTIONAL = {
    # Of gRPC and fsspec, where they are installed.
    *("cython_runtime", "grpc_health", "grpc_reflection", "grpc_tools", "backports", "zstandard"),
    # Of Kafka's client, for a way of Amazon's to authenticate.
    *("botocore", "certifi", "dateutil", "jmespath", "six", "urllib3"),
}
_OF_SERVICES = _OF_JOBS | {"gpt2_proxies", "grpc_status", "kafka", "prometheus_client", "sqlalchemy", "xxhash"}
_OWN = {
    "exporter": {"bson", "cryptography", "pymongo"},
    "tokenizer": {"numpy", "rustbpe", "tokenizers"},
    "trainer": {"numpy", "safetensors"},
    "registry": {"charset_normalizer", "idna", "requests", "socks"},
}
"""Besides those of every service. A framework, MLflow, Matplotlib and what talks to a cluster are none of them."""
_SHOW_MODULES = """
import sys
before = set(sys.modules)
import {module}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
# What begins with `_` comes with another module.
print(*(name for name in names if not name.startswith("_")))
"""


def imported(module: str) -> set[str]:
    """Top-level modules that the import of one brings along, besides the standard library."""
    command = [sys.executable, "-c", _SHOW_MODULES.format(module=module)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split())


@pytest.mark.parametrize("service", _OWN)
def test_a_service_starts_with_what_its_calls_need(service):
    found = imported(f"gpt2_{service}.service")
    assert found >= {"grpc", "sqlalchemy"}
    assert found - _OF_SERVICES - _OPTIONAL - _OWN[service] == {f"gpt2_{service}"}


def test_a_process_of_a_job_starts_without_what_serves():
    found = imported("gpt2_common.jobs.worker")
    assert found >= {"gpt2_common"}
    assert found - _OF_JOBS - _OPTIONAL == set()


def test_a_registration_loads_mlflow_and_matplotlib_when_it_needs_them():
    assert imported("gpt2_registry.jobs").isdisjoint({"matplotlib", "mlflow", "numpy", "pandas"})
