"""Compiled programs that processes share: real ones of the generating process, and the folder's own rules."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_support.computations import QUICK_COMPILATION
from trainer_support.data import END_TOKEN_ID, VOCABULARY_SIZE, make_tokenizer, random_weights

from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.formats.huggingface import write_huggingface
from gpt2_trainer.generation.worker_messages import GenerationTask, WorkerOptions
from gpt2_trainer.model.compile_cache import CompileCache, CompileCacheOptions

TASK = GenerationTask(prompts=("the then",), max_tokens=20, samples=1, sampling=SamplingConfig(), seed=3)
HIT = '"message": "Persistent compilation cache hit for \'jit__step\''
# Packages that Keras looks for and that no text needs.
NEEDLESS = re.compile(r"import time:.*\| +(pandas\.core|sklearn\.utils|matplotlib\.artist|IPython\.core|h5py\._hl)")
MIB = 1 << 20
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    layers = LayerSizes(n_layer=1, n_head=2, n_embd=16, n_ctx=64)
    architecture = Architecture(layers=layers, vocabulary_size=VOCABULARY_SIZE, end_token_id=END_TOKEN_ID)
    write_huggingface(folder, architecture, random_weights(architecture), tokenizer)
    return folder


class Worker:
    """A process that is given one task, as the service starts it."""

    def __init__(self, model, cache, working, backend="jax"):
        options = WorkerOptions(
            backend=backend, precision="float32", compile_cache=CompileCacheOptions(cache, 64 * MIB)
        )
        working.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt2_trainer.generation.worker", str(model), options.to_argument()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(working / "log").open("wb"),
            text=True,
            env={**os.environ, "TMPDIR": str(working), "JAX_LOG_COMPILES": "1", "PYTHONPROFILEIMPORTTIME": "1"},
        )
        self.process.stdin.write(json.dumps({"task": TASK.to_json()}) + "\n")
        self.process.stdin.flush()
        self.working = working

    def finish(self):
        """The text, and what the process wrote to its log."""
        pieces = []
        for line in self.process.stdout:
            message = json.loads(line)
            if "end" in message:
                break
            pieces.append(message["piece"]["text"])
        self.process.communicate(timeout=60)
        return "".join(pieces), (self.working / "log").read_text()


def entries(cache):
    return sorted(path for path in cache.glob("*/*") if path.is_file())


def are_whole(paths):
    return all(hashlib.sha256(path.read_bytes()[32:]).digest() == path.read_bytes()[:32] for path in paths)


@pytest.fixture(scope="module")
def compiled(model, tmp_path_factory):
    """The folder after two processes that began at once, with the text that both gave."""
    folder = tmp_path_factory.mktemp("compiled")
    workers = [Worker(model, folder / "cache", folder / name) for name in ("first", "second")]
    (text, log), (same, _) = (worker.finish() for worker in workers)
    assert text == same != ""
    assert "jit(_step)" in log
    assert HIT not in log
    assert not NEEDLESS.search(log)
    return folder / "cache", text


@pytest.mark.process
def test_a_process_takes_what_another_one_compiled(model, compiled, tmp_path):
    cache, text = compiled
    assert entries(cache)
    assert are_whole(entries(cache))
    found, log = Worker(model, cache, tmp_path / "third").finish()
    assert found == text
    # One program for prompts, one for what follows.
    assert log.count(HIT) == 2
    assert not list(cache.glob("*/.*"))


@pytest.mark.process
def test_damaged_programs_are_noticed_and_replaced(model, compiled, tmp_path):
    cache, text = compiled
    paths = [path for path in entries(cache) if "step" in path.name]
    assert len(paths) == 2
    changed = bytearray(paths[0].read_bytes())
    changed[len(changed) // 2] ^= 1
    paths[0].write_bytes(changed)
    os.truncate(paths[1], 10)
    found, log = Worker(model, cache, tmp_path / "worker").finish()
    assert found == text
    assert HIT not in log
    assert log.count('"message": "2 compiled programs in ') == log.count(" damaged") == 1
    assert {path.name for path in paths} < {path.name for path in entries(cache)}
    assert are_whole(entries(cache))


@pytest.mark.process
def test_tensorflow_gives_the_same_text(model, compiled, tmp_path):
    found, log = Worker(model, tmp_path / "cache", tmp_path / "worker", "tensorflow").finish()
    assert found == compiled[1]
    assert not NEEDLESS.search(log)


def tensorflow_step(cache):
    # What tests before have set in this process is no user's wish.
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer_support.tensorflow_step", str(cache)],
        env={**inherited, "PYTHONPATH": str(HERE), "XLA_FLAGS": QUICK_COMPILATION},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "could lead to execution errors" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.process
def test_a_training_step_on_tensorflow_is_compiled_once(tmp_path):
    first = tensorflow_step(tmp_path)
    assert first["taken"] == 0 < first["compiled"] == first["published"]
    assert are_whole(entries(tmp_path))
    damaged = entries(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    again = tensorflow_step(tmp_path)
    assert again == {**first, "taken": first["compiled"] - 1, "compiled": 1, "published": 1}
    assert are_whole(entries(tmp_path))


def test_programs_of_tensorflow_are_kept_where_they_are_asked_for(tmp_path, monkeypatch):
    options = CompileCacheOptions(tmp_path / "cache", MIB)
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_clustering_debug")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    CompileCache(options, "tensorflow", "model")
    assert os.environ["TF_XLA_FLAGS"] == "--tf_xla_clustering_debug"
    cache = CompileCache(options, "tensorflow", "model", keep_tensorflow=True)
    first, flag = os.environ["TF_XLA_FLAGS"].split()
    assert first == "--tf_xla_clustering_debug"
    write(flag.partition("=")[2], "program.pb", 100)
    assert cache.publish() == 1
    # From here on the flag is as a user's own.
    again = os.environ["TF_XLA_FLAGS"]
    CompileCache(options, "tensorflow", "model", keep_tensorflow=True)
    assert os.environ["TF_XLA_FLAGS"] == again
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")


@pytest.fixture
def open_cache(tmp_path, monkeypatch):
    """Opens a folder in turns, with what the environment says before each. Returns the cache and its own folder."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def opened(subject="model", max_bytes=MIB):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        cache = CompileCache(CompileCacheOptions(tmp_path / "cache", max_bytes), "jax", subject)
        return cache, os.environ.get("JAX_COMPILATION_CACHE_DIR")

    return opened


def write(folder, name, size):
    (Path(folder) / name).write_bytes(os.urandom(size))


def test_only_programs_of_the_same_subject_are_taken(open_cache):
    first, folder = open_cache()
    write(folder, "program-cache", 100)
    assert first.publish() == 1
    assert first.publish() == 0
    assert [path.name for path in Path(open_cache()[1]).iterdir()] == ["program-cache"]
    assert not list(Path(open_cache("another")[1]).iterdir())


def test_the_folder_stays_small_and_loses_what_was_used_longest_ago(open_cache, tmp_path):
    for number in range(3):
        cache, folder = open_cache(f"model {number}", 10_000)
        write(folder, f"{number}-cache", 3000)
        assert cache.publish() == 1
        os.utime(next(tmp_path.glob(f"cache/*/{number}-cache")), (number, number))
    open_cache("model 0")
    tensorflow = tmp_path / "cache" / "tensorflow-model" / "old.pb"
    write(tensorflow.parent.mkdir() or tensorflow.parent, tensorflow.name, 3000)
    os.utime(tensorflow, (0, 0))
    # A process that was killed while it wrote, long ago; and what is not the cache's.
    killed = tmp_path / "cache" / "jax-killed" / ".part-1"
    for path in (killed, tmp_path / "cache" / "jax-killed" / "mine", tmp_path / "cache" / "mine" / "my-cache"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(20_000))
        os.utime(path, (0, 0))
    cache, folder = open_cache("model 3", 10_000)
    write(folder, "3-cache", 3000)
    assert cache.publish() == 1
    left = {path.name for path in tmp_path.glob("cache/*/*")}
    assert left == {"0-cache", "2-cache", "3-cache", "mine", "my-cache"}


def test_a_folder_that_cannot_be_written_to_is_said_once(open_cache, tmp_path, caplog):
    (tmp_path / "cache").touch()
    cache, folder = open_cache()
    for name in ("1-cache", "2-cache"):
        write(folder, name, 10)
        assert cache.publish() == 0
    [record] = caplog.records
    assert "GPT2_COMPILE_CACHE_FOLDER: compiled programs cannot be kept in" in record.message


def test_nothing_is_kept_where_the_size_is_0_or_the_user_has_a_folder(open_cache, tmp_path, monkeypatch):
    cache, folder = open_cache(max_bytes=0)
    assert (folder, cache.publish()) == (None, 0)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert CompileCache(CompileCacheOptions(tmp_path / "cache", MIB), "jax", "model").publish() == 0
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    assert not (tmp_path / "cache").exists()
