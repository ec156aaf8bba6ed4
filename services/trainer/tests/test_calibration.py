"""Which backend a training runs on: measured, by rules, and the same one in every attempt."""

import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from trainer_support.computations import QUICK_COMPILATION
from trainer_support.data import small_architecture
from trainer_support.jobs import make_context

from gpt2_common.errors import DataLoss, FailedPrecondition, JobCancelled
from gpt2_common.settings import load_settings
from gpt2_trainer.calibration import calibration
from gpt2_trainer.calibration.calibration import Calibration
from gpt2_trainer.calibration.choice import choose_by_rule
from gpt2_trainer.calibration.measurement import MeasurementTask, measure
from gpt2_trainer.configuration.architecture import PRESETS, Architecture, LayerSizes
from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.jobs.backend_chooser import BackendChooser
from gpt2_trainer.model.compile_cache import CompileCacheOptions
from gpt2_trainer.model.processor import Processor
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.rank import Rank

CONFIG = ResolvedTrainingConfig(
    # Long enough that it is measured.
    steps=(1 << 31) - 1,
    batch_size=4,
    context_length=16,
    learning_rate=0.01,
    validate_every=100,
    save_every=100,
)
AMD = Processor("AMD EPYC 7763", ("fma", "avx2"), 2)
BELONGS_TO = {"request_digest": "0" * 64, "dataset_digest": "1" * 64}

FAKE = """
import json, os, signal, sys, time
task = json.loads(sys.stdin.readline())["task"]
with open({log!r}, "a") as log:
    print(task["backend"], file=log)
answer = {answers!r}[task["backend"]]
if answer == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if answer == "silent":
    time.sleep(600)
print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Puts processes that answer as given in place of those that measure. Returns the backends that were asked for."""
    log = tmp_path / "asked"
    log.touch()

    def answer(tensorflow=None, jax=None):
        answers = {"tensorflow": tensorflow or {"seconds": 1.0}, "jax": jax or {"seconds": 1.0}}
        (tmp_path / "fake_measurement.py").write_text(FAKE.format(log=str(log), answers=answers))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        # A file of the same size in the same second would be taken for the one that is compiled.
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setattr(calibration, "_MODULE", "fake_measurement")
        log.write_text("")
        return lambda: log.read_text().split()

    return answer


@pytest.fixture
def choose(tmp_path):
    """Calibrates. Returns the choice, what was warned of, and how many reports of progress there were."""

    def run(config=CONFIG, max_bytes=1 << 20, check=lambda: None):
        warnings, reports = [], []
        options = CompileCacheOptions(tmp_path / "compiled", max_bytes)
        one = Calibration(small_architecture(), config, "train", options, "revision", AMD)
        return one.choose(reports.append, check, warnings.append), warnings, reports

    return run


@pytest.mark.process
def test_the_faster_backend_is_chosen_and_measured_once(measured, choose):
    asked = measured({"seconds": 2.0}, {"seconds": 0.5})
    choice, warnings, reports = choose()
    assert (choice.backend, warnings, reports) == ("jax", [], [0, 1])
    assert choice.tokens_per_second == {"tensorflow": 32.0, "jax": 128.0}
    assert choice.reason == "measured on AMD EPYC 7763, 2 cores (avx2)"
    asked = measured({"seconds": 0.1}, {"seconds": 1.0})
    again, warnings, reports = choose()
    assert (again.backend, again.tokens_per_second) == ("jax", choice.tokens_per_second)
    assert (asked(), warnings, reports) == ([], [], [])
    # Another batch is measured for itself.
    other, _, _ = choose(replace(CONFIG, batch_size=8))
    assert (other.backend, asked()) == ("tensorflow", ["tensorflow", "jax"])


def key(config=CONFIG, architecture=None, processor=AMD, revision="revision"):
    options = CompileCacheOptions(Path(os.devnull), 1)
    return Calibration(architecture or small_architecture(), config, "train", options, revision, processor).file.name


def test_results_are_kept_by_what_they_depend_on(monkeypatch):
    changes = [
        {"batch_size": 8},
        {"gradient_accumulation_steps": 2},
        {"context_length": 8},
        {"precision": "bfloat16"},
        {"optimizer": "sgd"},
        {"gradient_checkpointing": True},
        {"lora": LoraConfig()},
        {"residual_dropout": 0.1},
    ]
    keys = [key(), *(key(replace(CONFIG, **change)) for change in changes)]
    keys += [key(architecture=small_architecture(n_embd=32)), key(architecture=small_architecture(n_layer=3))]
    keys += [key(architecture=replace(small_architecture(), vocabulary_size=99, end_token_id=98))]
    keys += [key(processor=replace(AMD, cores=4)), key(processor=replace(AMD, features=("fma", "avx2", "avx512f")))]
    keys += [key(processor=replace(AMD, model="another")), key(revision="another")]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(calibration, "installed_version", lambda _: "99")
    keys.append(key())
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    same = replace(CONFIG, steps=7, learning_rate=0.5, seed=9, save_every=3, sample_prompt="text")
    assert key(same) == key(architecture=replace(small_architecture(), end_token_id=0)) == keys[0]


@pytest.mark.process
@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("killed", "killed by SIGKILL, as where memory is short"),
        ({"error": "XlaRuntimeError: RESOURCE_EXHAUSTED"}, "XlaRuntimeError: RESOURCE_EXHAUSTED"),
        ("silent", "took longer than"),
    ],
)
@pytest.mark.parametrize("fails", ["tensorflow", "jax"])
def test_where_one_backend_fails_the_training_runs_on_the_other(measured, choose, monkeypatch, fails, broken, text):
    if broken == "silent":
        monkeypatch.setattr(calibration, "_START_SECONDS", 2.0)
        monkeypatch.setattr(calibration, "_MAX_STEPS", 0)
    measured(**{fails: broken})
    choice, [warning], _ = choose()
    works = {"tensorflow": "jax", "jax": "tensorflow"}[fails]
    assert choice.backend == works
    assert list(choice.tokens_per_second) == [works]
    assert warning.startswith(f"the calibration of {fails} failed (")
    assert text in warning
    assert warning.endswith(f"the training runs on {works}")
    # It may work the next time.
    asked = measured()
    assert choose()[1] == []
    assert asked() == ["tensorflow", "jax"]


@pytest.mark.process
def test_where_both_fail_the_training_runs_on_the_default(choose, monkeypatch):
    monkeypatch.setattr(calibration, "_MODULE", "no.such.module")
    choice, warnings, _ = choose()
    assert choice.backend == "tensorflow"
    assert not choice.tokens_per_second
    assert ["status 1" in text for text in warnings] == [True, True]


@pytest.mark.process
def test_a_cancelled_calibration_leaves_no_process(measured, choose, tmp_path):
    asked = measured(tensorflow="silent")

    def cancel():
        if asked():
            raise JobCancelled("the job was cancelled")

    with pytest.raises(JobCancelled):
        choose(check=cancel)
    assert not [child for child in psutil.Process().children() if "fake_measurement" in child.cmdline()]
    assert not (tmp_path / "compiled").exists()


@pytest.mark.process
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"tokens_per_second": {"jax": 1}}', b'{"tokens_per_second": {"jax": NaN, "tensorflow": 1}}'],
)
def test_damaged_results_are_measured_again(measured, choose, tmp_path, content):
    measured()
    choose()
    [file] = (tmp_path / "compiled" / "calibrations").iterdir()
    file.write_bytes(content)
    asked = measured({"seconds": 0.25})
    assert choose()[0].tokens_per_second["tensorflow"] == 256.0
    assert asked() == ["tensorflow", "jax"]
    assert json.loads(file.read_text())["tokens_per_second"] == {"tensorflow": 256.0, "jax": 64.0}


@pytest.mark.process
def test_results_that_cannot_be_kept_are_said_and_used(measured, choose, tmp_path, caplog):
    measured(jax={"seconds": 0.5})
    assert choose(max_bytes=0)[0].backend == "jax"
    assert not (tmp_path / "compiled").exists()
    (tmp_path / "compiled").touch()
    assert choose()[0].backend == "jax"
    # asyncio warns of a child whose status something else in this process has taken.
    [record] = [record for record in caplog.records if record.name.startswith("gpt2")]
    assert "GPT2_COMPILE_CACHE_FOLDER: the calibration cannot be kept in" in record.message


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"precision": "bfloat16", "lora": LoraConfig(rank=2)}, marks=pytest.mark.exhaustive)],
)
def test_a_step_is_measured_as_the_training_takes_it(backend, tmp_path, changes):
    options = CompileCacheOptions(tmp_path, 0)
    task = MeasurementTask(
        backend=backend.name,
        architecture=small_architecture(n_layer=1),
        config=replace(CONFIG, **changes),
        compile_cache=options,
        programs="train",
    )
    copied = MeasurementTask.from_json(json.loads(json.dumps(task.to_json())))
    assert copied == task
    assert 0 < backend(measure, copied) < 60


@pytest.mark.process
def test_real_processes_measure_both_backends(choose, compile_cache, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compile_cache))
    choice, warnings, reports = choose()
    assert (warnings, reports) == ([], [0, 1])
    speeds = choice.tokens_per_second
    assert speeds.keys() == {"tensorflow", "jax"}
    assert choice.backend == max(speeds, key=speeds.get)


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """Chooses as an attempt of a job does, on a processor of two cores. Returns the backend, and the job's context."""
    monkeypatch.setattr(Processor, "of_this_machine", lambda: AMD)

    def run(setting="auto", job_id="job", config=CONFIG, rank=None, begun=False, **inputs):
        folder = tmp_path / "compiled"
        context = make_context(tmp_path, job_id, keras_backend=setting, compile_cache_folder=folder)
        rest = {"is_on_cpu": True, "continued": "", **inputs}
        chooser = BackendChooser(context, BELONGS_TO, rank or Rank())
        choice = chooser.choose(small_architecture(), config, "train", begun=begun, **rest)
        return choice.backend, context

    return run


@pytest.mark.process
def test_a_resumed_training_keeps_its_backend_whatever_would_be_chosen_now(measured, chosen, tmp_path):
    measured({"seconds": 1.0}, {"seconds": 0.5})
    backend, context = chosen()
    assert backend == "jax"
    assert [report.phase for report in context.reports][:1] == ["calibrating"]
    last = context.reports[-1]
    assert last.phase == "calibrated: jax (tensorflow 64.0, jax 128.0 tokens/s)"
    assert dict(last.metrics) == {"tensorflow_tokens_per_second": 64.0, "jax_tokens_per_second": 128.0}
    [file] = (tmp_path / "compiled" / "calibrations").iterdir()
    file.write_text('{"tokens_per_second": {"tensorflow": 9, "jax": 1}}')
    asked = measured()
    assert chosen()[0] == chosen(begun=True)[0] == "jax"
    assert chosen(job_id="another")[0] == "tensorflow"
    # Also where the setting is another by now.
    backend, context = chosen("tensorflow")
    assert backend == "jax"
    [warning] = context.warnings
    assert "GPT2_KERAS_BACKEND: is tensorflow, and this training began on jax" in warning
    assert asked() == []


def test_the_setting_wins(measured, chosen):
    asked = measured({"seconds": 1.0}, {"seconds": 0.5})
    assert chosen("tensorflow", "first", continued="jax")[0] == "tensorflow"
    assert chosen("jax", "second", continued="tensorflow")[0] == "jax"
    assert chosen("jax", "third", begun=True)[0] == "jax"
    assert asked() == []


def test_a_training_of_an_earlier_version_stays_on_its_default(chosen):
    assert chosen(begun=True)[0] == "tensorflow"
    assert chosen()[0] == "tensorflow"


def test_a_training_on_one_backend_is_not_resumed_on_nodes_that_need_the_other(chosen):
    nodes = Rank(0, 2, "localhost:1")
    assert chosen("tensorflow")[0] == "tensorflow"
    with pytest.raises(FailedPrecondition, match=r"config.num_nodes: this training began on tensorflow"):
        chosen(rank=nodes)
    assert chosen(job_id="another", rank=nodes)[0] == chosen(job_id="another")[0] == "jax"


@pytest.mark.parametrize("content", ["", "{}", '{"choice": {"backend": "torch", "reason": ""}}'])
def test_a_damaged_record_ends_the_job(chosen, content):
    _, context = chosen("jax")
    record = json.dumps({**BELONGS_TO, **json.loads(content)}) if content else content
    (context.work / "backend.json").write_text(record)
    with pytest.raises(DataLoss, match=r"backend.json is damaged"):
        chosen("jax")


@pytest.mark.parametrize(
    ("changes", "inputs", "backend"),
    [
        ({}, {}, None),
        ({"steps": 199}, {}, "tensorflow"),
        ({"max_seconds": 1199.0}, {}, "tensorflow"),
        ({"max_seconds": 1201.0}, {}, None),
        ({"steps": 10**9, "first_step": 10**9 - 100}, {}, "tensorflow"),
        ({"devices": 1}, {}, None),
        ({"devices": 2}, {"continued": "tensorflow"}, "jax"),
        ({"model_devices": 2}, {}, "jax"),
        ({"num_nodes": 2}, {}, "jax"),
        ({}, {"nodes": 2}, "jax"),
        ({"steps": 10}, {"is_on_cpu": False}, "jax"),
        ({}, {"continued": "tensorflow"}, "tensorflow"),
        ({"steps": 10}, {"continued": "jax"}, "jax"),
        ({}, {"continued": "torch"}, None),
    ],
)
def test_what_needs_no_measurement(changes, inputs, backend):
    rest = {"is_on_cpu": True, "cores": 2, "nodes": 1, "continued": "", **inputs}
    choice = choose_by_rule("auto", small_architecture(), replace(CONFIG, **changes), **rest)
    assert (choice and choice.backend) == backend


def test_large_trainings_are_measured_and_small_ones_are_not():
    """124M at 2,048 tokens a step: 1.7e12 operations, so 1.2e14 on two cores are 71 steps; 200 are the fewest."""

    def rule(layers, steps, **changes):
        architecture = Architecture(layers=layers, vocabulary_size=50257, end_token_id=50256)
        config = replace(CONFIG, steps=steps, batch_size=8, context_length=256, **changes)
        return choose_by_rule("auto", architecture, config, is_on_cpu=True, cores=2, nodes=1, continued="")

    assert rule(PRESETS["124M"], 200) is None
    assert rule(PRESETS["124M"], 199).backend == "tensorflow"
    # As large as the demo's, and with a vocabulary and batches that it does not have.
    assert rule(LayerSizes.of(n_layer=4, n_head=4, n_embd=192, n_ctx=256), 400).backend == "tensorflow"


@pytest.mark.parametrize(
    ("variables", "setting", "evaluation", "trainjob"),
    [
        ({}, "auto", "tensorflow", "jax"),
        ({"KERAS_BACKEND": "jax"}, "jax", "jax", "jax"),
        ({"KERAS_BACKEND": "jax", "GPT2_KERAS_BACKEND": "tensorflow"}, "tensorflow", "tensorflow", "tensorflow"),
        ({"KERAS_BACKEND": "jax", "GPT2_KERAS_BACKEND": "auto"}, "auto", "tensorflow", "jax"),
    ],
)
def test_backends_by_the_settings(monkeypatch, variables, setting, evaluation, trainjob):
    for name in ("KERAS_BACKEND", "GPT2_KERAS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = load_settings(TrainerSettings)
    assert (found.keras_backend, found.evaluation_backend, found.trainjob_backend) == (setting, evaluation, trainjob)


@pytest.mark.parametrize(
    ("features", "precision", "is_on_cpu", "warns"),
    [
        (("avx2",), "bfloat16", True, True),
        (("avx2", "avx512f"), "bfloat16", True, True),
        (("avx2",), "float32", True, False),
        (("avx2",), "bfloat16", False, False),
        (("avx2", "avx512f", "avx512_bf16"), "bfloat16", True, False),
        (("avx2", "amx_bf16"), "bfloat16", True, False),
        (("asimd", "bf16"), "bfloat16", True, False),
        ((), "bfloat16", True, False),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_warned_of(chosen, monkeypatch, features, precision, is_on_cpu, warns):
    monkeypatch.setattr(Processor, "of_this_machine", lambda: replace(AMD, features=features))
    config = replace(CONFIG, precision=precision)
    _, context = chosen("jax", config=config, is_on_cpu=is_on_cpu)
    assert [text.startswith("config.precision: bfloat16 is slower") for text in context.warnings] == [True] * warns


XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
GRAVITON = """processor\t: 0
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
CPU variant\t: 0x0
CPU part\t: 0xd4f
"""


@pytest.mark.parametrize(
    ("text", "model", "sets"),
    [
        (
            XEON,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "amx_bf16"),
        ),
        (GRAVITON, "0x41 0xd4f 0x0", ("neon", "sve", "bf16")),
        ("", None, ()),
        ("\x00nonsense\nflags", None, ()),
    ],
)
def test_processors_as_the_kernel_describes_them(tmp_path, text, model, sets):
    (tmp_path / "cpuinfo").write_text(text)
    found = Processor.of_this_machine(tmp_path / "cpuinfo")
    assert found.instruction_sets == sets
    assert found.model == model or (model is None and found.model)
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.emulates_bfloat16 is False
    assert Processor.of_this_machine(tmp_path / "absent").features == ()
