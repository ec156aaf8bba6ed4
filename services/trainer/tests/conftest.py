import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from trainer_support import computations
from trainer_support.data import make_dataset

from gpt2.trainer.v1 import trainer_service_pb2 as pb


class BackendProcess:
    """A process with one of Keras' backends, as a process can have only one."""

    def __init__(self, name, cache, devices=1):
        self.name, self.cache = name, str(cache)
        start = computations.start_backend
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start, (name, self.cache, devices))

    def __call__(self, function, *arguments, **options):
        return self.pool.submit(function, *arguments, **options).result()


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """Where JAX keeps what it has compiled, for all workers of a run."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tensorflow_process(compile_cache):
    process = BackendProcess("tensorflow", compile_cache)
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="session")
def jax_process(compile_cache):
    process = BackendProcess("jax", compile_cache)
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="session")
def four_devices_process(compile_cache):
    process = BackendProcess("jax", compile_cache, devices=4)
    yield process
    process.pool.shutdown()


@pytest.fixture
def train(jax_process, tmp_path):
    """Runs a training job on a small dataset and returns its outputs, or its error."""
    make_dataset(tmp_path / "dataset")

    def run(start=None, job_id="job", dataset="dataset", settings=None, new_default=None, suspend_at=None, **config):
        values = {"steps": 6, "batch_size": 4, "learning_rate": 0.02, "sample_length": 1, "warmup_steps": -1, **config}
        request = pb.TrainModelRequest(
            dataset_uri=(tmp_path / dataset).as_uri(),
            config=pb.TrainConfig(**values),
            **(start or {"model": pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16)}),
        )
        job = ("gpt2_trainer.jobs.train", "train_model", "TrainModelRequest")
        options = {"keras_backend": "jax", **(settings or {})}
        arguments = (*job, request.SerializeToString(), str(tmp_path), job_id)
        if suspend_at:
            return jax_process(computations.suspend_job, *suspend_at, *arguments, **options)
        if new_default:
            return jax_process(computations.run_job_with_default, *new_default, *arguments, **options)
        return jax_process(computations.run_job, *arguments, **options)

    return run


@pytest.fixture(params=["tensorflow", "jax"])
def backend(request):
    """Each backend in turn."""
    return request.getfixturevalue(f"{request.param}_process")
