"""Other implementations say of an exported model what ours says: KerasHub's and Hugging Face's.

Their answers are stored, as they need several gigabytes of packages: `peers/logits.py` says how they came about.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from trainer_support import computations
from trainer_support.data import random_weights

PEERS = Path(__file__).parent / "peers"


@pytest.fixture(scope="module")
def export():
    specification = importlib.util.spec_from_file_location("export", PEERS / "export.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("peer", ["transformers", "kerashub"])
def test_the_export_is_what_they_loaded(export, tmp_path, peer):
    export.write(tmp_path)
    digests = json.loads((PEERS / f"{peer}.json").read_text())["files"]
    assert set(digests) == {"config.json", "model.safetensors"}
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in digests} == digests


@pytest.mark.parametrize("peer", ["transformers", "kerashub"])
def test_logits_are_theirs(backend, export, peer):
    expected = np.load(PEERS / f"{peer}.npy", allow_pickle=False)
    weights = random_weights(export.ARCHITECTURE)
    ours = backend(computations.model_logits, export.ARCHITECTURE, weights, export.token_ids())
    ours = ours[..., : export.ARCHITECTURE.vocabulary_size]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4)
