"""The service's side of generation, with processes that end as badly as they can."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from gpt2_common.errors import Unavailable
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.generation import worker_pool
from gpt2_trainer.generation.worker_messages import GenerationTask, WorkerOptions
from gpt2_trainer.model.compile_cache import CompileCacheOptions

pytestmark = pytest.mark.process

OPTIONS = WorkerOptions(backend="jax", precision="float32", compile_cache=CompileCacheOptions(Path("unused"), 0))
TASK = GenerationTask(prompts=("a",), max_tokens=1, samples=1, sampling=SamplingConfig(), seed=0)

# The first one's output ends while the process itself runs, as a killed process's does until it is reaped.
PROCESS = """
import json, os, sys, time
if not os.path.exists({mark!r}):
    open({mark!r}, "w").close()
    sys.stdin.readline()
    os.close(1)
    time.sleep(600)
for line in sys.stdin:
    print(json.dumps({{"piece": {{"prompt": 0, "sample": 0, "text": "b", "finish_reason": 1}}}}), flush=True)
    print(json.dumps({{"complete": None}}), flush=True)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "ending_worker.py").write_text(PROCESS.format(mark=str(tmp_path / "mark")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    start = worker_pool.ChildProcess.start

    async def started(_module, *_arguments, environment):
        return await start("ending_worker", environment=environment)

    monkeypatch.setattr(worker_pool.ChildProcess, "start", started)


def test_no_task_is_given_to_a_process_whose_output_has_ended(module, tmp_path):
    async def generated():
        pool = worker_pool.WorkerPool(OPTIONS, idle_seconds=60, max_models=1)
        try:
            with pytest.raises(Unavailable, match="has crashed"):
                [piece async for piece in pool.generate("digest", tmp_path, TASK)]
            return [piece.text async for piece in pool.generate("digest", tmp_path, TASK)]
        finally:
            await pool.close()

    assert asyncio.run(asyncio.wait_for(generated(), 60)) == ["b"]
