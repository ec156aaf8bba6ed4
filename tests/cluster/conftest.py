"""One cluster for all tests of a worker: `make test-cluster`.

Without GPT2_TEST_CLUSTER nothing here is collected: the programs of a cluster take minutes to build.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pod import Image
from .running_cluster import Cluster, running_cluster

collect_ignore_glob = [] if os.environ.get("GPT2_TEST_CLUSTER") else ["test_*.py"]
sys.path.append(str(Path(__file__).resolve().parents[2] / "services" / "trainer" / "tests"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A cluster whose nodes have the image of trainings, and no other."""
    compiled = str(tmp_path_factory.mktemp("compiled"))
    variables = {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with running_cluster(tmp_path_factory.mktemp("cluster"), Image(environment=variables)) as cluster:
        yield cluster
