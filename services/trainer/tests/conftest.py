import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from gpt2_trainer.model.backend import select_backend


class BackendProcess:
    """A process with one of Keras' backends, as a process can have only one."""

    def __init__(self, name):
        self.name = name
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), select_backend, (name,))

    def __call__(self, function, *arguments, **options):
        return self.pool.submit(function, *arguments, **options).result()


@pytest.fixture(scope="session")
def tensorflow_process():
    process = BackendProcess("tensorflow")
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="session")
def jax_process():
    process = BackendProcess("jax")
    yield process
    process.pool.shutdown()


@pytest.fixture(params=["tensorflow", "jax"])
def backend(request):
    """Each backend in turn."""
    return request.getfixturevalue(f"{request.param}_process")
