import io

import pytest
from rich.console import Console
from rich.progress import Progress

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.jobs import describe, duration
from gpt2_orchestration.client.progress import BarDisplay, LineDisplay


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (45, "45s"), (200, "3m20s"), (7500, "2h05m"), (90000, "25h00m")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def running(**progress) -> job_pb2.Job:
    return job_pb2.Job(state=job_pb2.Job.STATE_RUNNING, progress=job_pb2.Progress(**progress))


def test_a_job_is_described_with_amount_rate_time_left_and_metrics():
    job = running(phase="training", done=1500, total=3000, unit="steps", rate=10, metrics={"loss": 5.4321})
    assert describe(job) == "training  1,500/3,000 steps  10.0/s  2m30s left  loss 5.432"


def test_what_is_unknown_is_left_out():
    assert describe(running(phase="reading", done=10, unit="documents")) == "reading  10 documents"
    assert describe(running()) == "running"
    assert describe(job_pb2.Job(state=job_pb2.Job.STATE_QUEUED)) == "queued"


def test_a_warning_is_printed_once_also_by_a_bar(capsys):
    console = Console(file=io.StringIO(), width=200)
    displays = (LineDisplay("TrainModel"), BarDisplay("TrainModel", Progress(console=console)))
    for display in displays:
        for state in (job_pb2.Job.STATE_RUNNING, job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_SUCCEEDED):
            display.show(job_pb2.Job(state=state, warnings=["the loss [rose]"]))
    for text in (capsys.readouterr().err, console.file.getvalue()):
        assert text.count("WARNING: the loss [rose]") == 1


def test_lines_are_printed_for_what_is_new_alone(capsys):
    display = LineDisplay("TrainModel")
    for done in range(5):
        display.show(running(phase="training", done=done, total=10, unit="steps"))
    display.show(job_pb2.Job(state=job_pb2.Job.STATE_SUCCEEDED))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["TrainModel", "succeeded"]


def test_a_phase_without_a_total_has_no_amounts_and_an_indeterminate_bar():
    progress = Progress(console=Console(file=io.StringIO()))
    display = BarDisplay("TrainTokenizer", progress)
    display.show(running(phase="counting", done=9, total=9, unit="documents"))
    merging = running(phase="merging")
    display.show(merging)
    assert describe(merging) == "merging"
    assert progress.tasks[0].total is None
