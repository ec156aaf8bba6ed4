import os
import secrets

import pytest
from brokers import require_java
from pymongo import MongoClient

from .services import fault_stack


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether the long form is wanted: GPT2_FAULTS=long."""
    return os.environ.get("GPT2_FAULTS") == "long"


@pytest.fixture(scope="session")
def canaries() -> dict[str, str]:
    """Passwords of the services, by variable, that must be found nowhere."""
    names = ("GPT2_AUTH_TOKEN", "GPT2_MONGODB_URI_GUARDED", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")
    return {name: f"canary{secrets.token_hex(12)}" for name in names}


@pytest.fixture(scope="session")
def stack(tmp_path_factory, canaries):
    """The stack of the whole suite, with 40 texts in files and in MongoDB."""
    require_java()
    root = tmp_path_factory.mktemp("faults")
    (root / "text").mkdir()
    texts = [f"{number} bottles of beer on the wall, {number} bottles. " * 30 for number in range(40)]
    for number, text in enumerate(texts):
        (root / "text" / f"{number}.txt").write_text(text)
    environment = {
        "GPT2_MONGODB_TIMEOUT_SECONDS": "3",
        "GPT2_MONGODB_URI_GUARDED": f"mongodb://user:{canaries['GPT2_MONGODB_URI_GUARDED']}@127.0.0.1:1",
        "MLFLOW_TRACKING_USERNAME": "user",
        "MLFLOW_TRACKING_PASSWORD": canaries["MLFLOW_TRACKING_PASSWORD"],
        "AWS_SECRET_ACCESS_KEY": canaries["AWS_SECRET_ACCESS_KEY"],
    }
    with fault_stack(root, environment, canaries["GPT2_AUTH_TOKEN"]) as running:
        with MongoClient(f"mongodb://{running.addresses['mongodb']}") as mongodb:
            mongodb["faults"]["articles"].insert_many({"_id": f"{n:03}", "body": text} for n, text in enumerate(texts))
        yield running
