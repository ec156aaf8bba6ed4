"""Commands find the stack of their checkout: in `.gpt2`, below it, elsewhere, and from a subfolder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpt2_orchestration.stack.discovery import SeveralStacks, choose_stack, find_stacks, findable
from gpt2_orchestration.stack.exclusive import exclusive
from gpt2_orchestration.stack.process_identity import identify
from gpt2_orchestration.stack.record import ProcessRecord, StackRecord, write_record
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackFolder

GPT2 = Path(sys.executable).with_name("gpt2")
NAMES = ("mongodb", "kafka", "mlflow", "tensorboard", "exporter", "tokenizer", "trainer", "registry", "dashboard")


@contextmanager
def stack_in(folder: Path, host: str = "127.0.0.2", topic: str = "") -> Iterator[None]:
    """A stack as far as others see it: the lock is held, and the record says where its processes are."""
    layout = StackFolder.create(folder)
    supervisor = identify(os.getpid())
    assert supervisor is not None
    with exclusive(layout):
        records = tuple(
            ProcessRecord(
                name=name,
                state="ready",
                address=f"{host}:{DEFAULT_PORTS[name]}",
                identity=None,
                restarts=0,
                start_seconds=1.0,
                note="",
            )
            for name in NAMES
        )
        record = StackRecord(supervisor=supervisor, artifact_root="", kafka_topic=topic, processes=records)
        write_record(layout, record)
        yield


def gpt2(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [GPT2, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def configured(folder: Path, *options: str, **environment: str) -> dict[str, tuple[str, str]]:
    result = gpt2(*options, "config", "--json", folder=folder, **environment)
    assert result.returncode == 0, result.stderr
    return {row["name"]: (row["value"], row["source"]) for row in json.loads(result.stdout)}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / ".git").mkdir(parents=True)
    (folder / "docs" / "deep").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("place", [".gpt2", ".gpt2/demo"])
def test_the_running_stack_of_a_checkout_is_found_also_from_a_subfolder(checkout, place):
    assert find_stacks(checkout) == []
    with stack_in(checkout / place):
        assert find_stacks(checkout) == find_stacks(checkout / "docs" / "deep") == [checkout / place]
    assert find_stacks(checkout) == []


def test_a_stack_above_the_checkout_is_another_ones(checkout):
    with stack_in(checkout.parent / ".gpt2"):
        assert find_stacks(checkout) == []


def test_a_stack_in_another_folder_is_found_where_it_was_started(checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    with findable(elsewhere, checkout / "docs"), stack_in(elsewhere):
        assert find_stacks(checkout / "docs") == [elsewhere]
    assert find_stacks(checkout / "docs") == []
    assert not (checkout / "docs" / ".gpt2").exists()


@pytest.mark.process
def test_of_several_stacks_that_in_the_usual_folder_is_taken_and_all_are_named(checkout):
    with stack_in(checkout / ".gpt2" / "demo"), stack_in(checkout / ".gpt2" / "other"):
        with pytest.raises(SeveralStacks, match=r"demo.*other.*GPT2_STACK_FOLDER"):
            choose_stack(find_stacks(checkout))
        result = gpt2("jobs", "list", folder=checkout)
        assert result.returncode == 1
        assert ".gpt2/demo" in result.stderr
        assert ".gpt2/other" in result.stderr
        with stack_in(checkout / ".gpt2"):
            chosen, notice = choose_stack(find_stacks(checkout))
            assert chosen == checkout / ".gpt2"
            assert ".gpt2/demo" in notice


@pytest.mark.process
def test_every_address_comes_from_the_stack_of_the_demonstration(checkout):
    with stack_in(checkout / ".gpt2" / "demo", topic="its.topic"):
        shown = configured(checkout / "docs")
        source = f"stack in {checkout / '.gpt2' / 'demo'}"
        assert shown["GPT2_EXPORTER_ADDRESS"] == ("127.0.0.2:50051", source)
        assert shown["GPT2_KAFKA_BOOTSTRAP_SERVERS"] == ("127.0.0.2:9092", source)
        assert shown["GPT2_KAFKA_TOPIC"] == ("its.topic", source)
        assert shown["GPT2_MLFLOW_TRACKING_URI"] == ("http://127.0.0.2:5000", source)
        assert shown["GPT2_TENSORBOARD_URI"] == ("http://127.0.0.2:6006", source)
        assert shown["GPT2_MONGODB_URI"][1] == source
        found = configured(checkout, GPT2_EXPORTER_ADDRESS="own:1")
        assert found["GPT2_EXPORTER_ADDRESS"] == ("own:1", "environment")


@pytest.mark.process
def test_an_option_or_a_variable_chooses_the_stack(checkout, tmp_path):
    with ExitStack() as running:
        running.enter_context(stack_in(checkout / ".gpt2"))
        running.enter_context(stack_in(tmp_path / "other", host="127.0.0.3"))
        for shown in (
            configured(checkout, "--stack", str(tmp_path / "other")),
            configured(checkout, GPT2_STACK_FOLDER=str(tmp_path / "other")),
        ):
            assert shown["GPT2_EXPORTER_ADDRESS"][0] == "127.0.0.3:50051"


@pytest.mark.process
def test_commands_say_whom_they_speak_with_where_it_is_not_obvious(checkout):
    with stack_in(checkout / ".gpt2" / "demo"):
        result = gpt2("models", "list", folder=checkout)
    assert f"gpt2: using the stack in {checkout / '.gpt2' / 'demo'}" in result.stderr


@pytest.mark.process
def test_stack_status_finds_the_stack_and_names_its_folder(checkout):
    with stack_in(checkout / ".gpt2" / "demo"):
        result = gpt2("stack", "status", folder=checkout / "docs")
    assert result.returncode == 0
    assert f"stack in {checkout / '.gpt2' / 'demo'}" in result.stdout
