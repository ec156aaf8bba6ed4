"""The stack of the suite, and its report: GPT2_FAULTS=long wants the long form."""

import secrets
from collections.abc import Sequence
from typing import Protocol

import pytest
from brokers import require_java
from fault_report import SEEN, format_table
from pymongo import MongoClient

from .runs import UNDISTURBED, Job, all_stages, check, finish, start
from .services import fault_stack


class Report(Protocol):
    """Takes what a test has seen, in a line, and the table behind it where there is one."""

    def __call__(self, seen: str, table: Sequence[Sequence[object]] = ()) -> None: ...


@pytest.fixture
def report(capsys, record_property) -> Report:
    """Prints what a test has seen, whatever pytest captures, and keeps it for the end of the suite."""

    def tell(seen: str, table: Sequence[Sequence[object]] = ()) -> None:
        record_property(SEEN, seen)
        with capsys.disabled():
            print("", *format_table(table), seen, sep="\n")

    return tell


@pytest.fixture(scope="session")
def canaries() -> dict[str, str]:
    """Passwords of the services, by variable, that must be found nowhere."""
    names = ("GPT2_AUTH_TOKEN", "GPT2_MONGODB_URI_GUARDED", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")
    return {name: f"canary{secrets.token_hex(12)}" for name in names}


@pytest.fixture(scope="session")
def stack(tmp_path_factory, canaries, quick_trainings):
    """The stack of the whole suite, with 40 texts in files and in MongoDB."""
    require_java()
    # A name that a URI says by percent signs.
    root = tmp_path_factory.mktemp("faults größe + ")
    (root / "text").mkdir()
    texts = [f"{number} bottles of beer on the wall, {number} bottles. " * 30 for number in range(40)]
    for number, text in enumerate(texts):
        (root / "text" / f"{number}.txt").write_text(text)
    environment = {
        **quick_trainings,
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


@pytest.fixture(scope="session")
def undisturbed(stack) -> dict[str, Job]:
    """The jobs, by kind, of a run that nothing disturbed: all kinds there are."""
    start(stack, UNDISTURBED, all_stages(stack.folder.artifacts.as_uri(), UNDISTURBED))
    jobs = finish(stack, UNDISTURBED, "RegisterModel")
    check(stack, UNDISTURBED, jobs)
    return jobs
