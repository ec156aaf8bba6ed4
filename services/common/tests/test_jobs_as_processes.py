"""What callers see of jobs, over real sockets, with the service and its children as real processes."""

import json
import os
import signal
import time
from pathlib import Path

import grpc
import psutil
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2

pytestmark = pytest.mark.process

Job = job_pb2.Job
Health = health_pb2.HealthCheckResponse


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 120
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def test_a_job_goes_from_queued_to_succeeded_and_its_output_can_be_opened(service):
    created = service.submit("succeed", job_id="run-1/export")
    assert (created.state, created.run_id, created.service) == (Job.STATE_QUEUED, "run-1", "fake")
    states = service.watch("run-1/export")
    assert states[-1].state == Job.STATE_SUCCEEDED
    assert [job.revision for job in states] == sorted({job.revision for job in states})
    [output] = states[-1].outputs
    assert output.counts["documents"] == 1
    folder = Path(output.uri.removeprefix("file://"))
    assert (folder / "text.txt").read_text() == "hello"
    assert json.loads((folder / "manifest.json").read_text())["producer"]["job_id"] == "run-1/export"
    assert not (folder.parent / ".work").exists()


def test_a_job_that_warns_says_so_while_it_runs_and_when_it_has_ended(service, tmp_path):
    for end, state in (("succeed", Job.STATE_SUCCEEDED), ("fail", Job.STATE_FAILED)):
        ended = service.run("warn", end, "the loss rose", "the label stays", "the loss rose", job_id=end)
        assert (ended.state, list(ended.warnings)) == (state, ["the loss rose", "the label stays"])
        assert service.get(end).warnings == ended.warnings


def test_warnings_are_bounded_so_that_a_job_still_fits_into_an_event(shared_service):
    ended = shared_service.run("warn", "succeed", *(f"{number} " + "ü" * 5000 for number in range(40)))
    assert ended.state == Job.STATE_SUCCEEDED
    assert len(ended.warnings) == 20
    assert {len(text) for text in ended.warnings} == {2000}


def test_a_retried_job_keeps_its_warnings_once(service):
    service.run("warn", "fail", "the loss rose", job_id="a")
    again = service.run("warn", "fail", "the loss rose", job_id="a", retry_failed=True)
    assert list(again.warnings) == ["the loss rose"]


def test_the_same_request_again_returns_the_same_job_and_does_no_work(service):
    first = service.run("succeed", job_id="a")
    again = service.submit("succeed", job_id="a")
    assert again == first


def test_another_request_under_the_same_id_is_refused(service):
    service.run("succeed", job_id="a")
    with pytest.raises(grpc.RpcError) as error:
        service.submit("fail", job_id="a")
    assert error.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert "choose another job_id" in error.value.details()


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        ("fail", code_pb2.FAILED_PRECONDITION, "the collection is empty: fill it"),
        ("bug", code_pb2.INTERNAL, "internal error (KeyError)"),
        ("disk_full", code_pb2.RESOURCE_EXHAUSTED, "no space left on the disk at /data/x"),
        ("die", code_pb2.RESOURCE_EXHAUSTED, "killed from outside"),
        ("exit", code_pb2.INTERNAL, "exit status 3"),
    ],
)
def test_a_job_that_fails_has_a_status_that_says_why(shared_service, action, code, words):
    job = shared_service.run(action)
    assert job.state == Job.STATE_FAILED
    assert job.error.code == code
    assert words in job.error.message
    assert "secret-detail" not in job.error.message
    assert shared_service.run("succeed").state == Job.STATE_SUCCEEDED


def test_a_job_that_quotes_bytes_that_are_not_utf_8_says_so_escaped(shared_service):
    escaped = r"\xf6\xff\ud83d"
    failed = shared_service.run("quote", "fail")
    assert failed.error.code == code_pb2.FAILED_PRECONDITION
    assert failed.error.message == f"no column {escaped}"
    assert (failed.progress.phase, failed.progress.unit, dict(failed.progress.metrics)) == (
        *(escaped, escaped),
        {escaped: 1.0},
    )
    [made] = shared_service.run("quote", "succeed").outputs
    assert made.properties["source"] == escaped


def test_a_failed_job_is_returned_as_it_is_unless_a_retry_is_asked_for(service, tmp_path):
    failed = service.run("fail", job_id="a")
    assert service.submit("fail", job_id="a") == failed
    again = service.submit("fail", job_id="a", retry_failed=True)
    assert again.state == Job.STATE_QUEUED
    assert not again.HasField("error")
    assert service.watch("a")[-1].state == Job.STATE_FAILED


def test_a_cancelled_job_stops_and_leaves_nothing_that_can_be_opened(service, tmp_path):
    job = service.submit("wait", str(tmp_path / "pid"))
    pid = int(wait_for_file(tmp_path / "pid"))
    assert service.cancel(job.job_id, "no longer needed").cancel_requested
    ended = service.watch(job.job_id)[-1]
    assert ended.state == Job.STATE_CANCELLED
    assert ended.error.message == "cancelled by a caller (unauthenticated): no longer needed"
    assert ended.actor == "unauthenticated"
    wait_until_gone(pid)
    assert not list(tmp_path.glob("artifacts/*/corpus"))
    assert service.cancel(job.job_id).state == Job.STATE_CANCELLED


def test_a_job_that_ignores_its_cancellation_is_killed_when_the_grace_is_over(service, tmp_path):
    job = service.submit("ignore_cancel", str(tmp_path / "pid"))
    pid = int(wait_for_file(tmp_path / "pid"))
    service.cancel(job.job_id)
    assert service.watch(job.job_id)[-1].state == Job.STATE_CANCELLED
    wait_until_gone(pid)


def test_a_job_that_has_ended_cannot_be_cancelled(shared_service):
    job = shared_service.run("succeed")
    with pytest.raises(grpc.RpcError) as error:
        shared_service.cancel(job.job_id)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_queued_job_is_cancelled_at_once(service, tmp_path):
    for number in range(2):
        service.submit("wait", str(tmp_path / f"pid{number}"))
    waiting = service.submit("succeed")
    assert service.cancel(waiting.job_id).state == Job.STATE_CANCELLED


def test_jobs_beyond_the_limit_stay_queued(service, tmp_path):
    flag = tmp_path / "go"
    jobs = [service.submit("finish_when", str(flag)).job_id for _ in range(3)]
    service.wait_for_state(jobs[1], Job.STATE_RUNNING)
    time.sleep(0.5)
    assert service.get(jobs[2]).state == Job.STATE_QUEUED
    flag.touch()
    assert all(service.watch(job)[-1].state == Job.STATE_SUCCEEDED for job in jobs)


def test_the_children_of_a_killed_service_end_and_its_jobs_are_resumed_after_a_restart(service, tmp_path):
    flag = tmp_path / "go"
    job = service.submit("finish_when", str(flag))
    waiting = service.submit("wait", str(tmp_path / "pid"))
    pid = int(wait_for_file(tmp_path / "pid"))
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    service.kill()
    wait_until_gone(pid)
    flag.touch()
    service.start().wait_until_ready()
    ended = service.watch(job.job_id)[-1]
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 2)
    assert service.wait_for_state(waiting.job_id, Job.STATE_RUNNING).attempt == 2


def test_the_jobs_of_a_stopped_service_are_suspended_and_resumed_after_a_restart(service, tmp_path):
    job = service.submit("finish_when", str(tmp_path / "go"))
    at_work = service.submit("wait", str(tmp_path / "pid"))
    wait_for_file(tmp_path / "pid")
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    # `gpt2 stack down` and systemd signal the jobs' processes as well.
    for child in psutil.Process(service.process.pid).children(recursive=True):
        child.terminate()
    assert service.stop() == 0
    (tmp_path / "go").touch()
    service.start().wait_until_ready()
    assert service.watch(job.job_id)[-1].state == Job.STATE_SUCCEEDED
    assert service.wait_for_state(at_work.job_id, Job.STATE_RUNNING).attempt == 2


def test_a_service_that_stops_reports_so_and_refuses_start_calls(make_service, tmp_path):
    # The job ignores its cancellation, so that the service takes as long to stop as it may.
    service = make_service(GPT2_CANCEL_GRACE_SECONDS="8").start().wait_until_ready()
    job = service.submit("ignore_cancel", str(tmp_path / "pid"))
    pid = int(wait_for_file(tmp_path / "pid"))
    service.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 120
    while service.health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == Health.SERVING:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(grpc.RpcError) as error:
        service.submit("succeed", job_id="late")
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "stopping" in error.value.details()
    assert service.get(job.job_id).state == Job.STATE_RUNNING
    assert service.process.wait(60) == 0
    wait_until_gone(pid)
    service.channel.close()
    service.start().wait_until_ready()
    assert service.wait_for_state(job.job_id, Job.STATE_RUNNING).attempt == 2


def test_a_job_whose_service_crashes_too_often_without_progress_fails(make_service, tmp_path):
    service = make_service(GPT2_MAX_ATTEMPTS="1").start().wait_until_ready()
    job = service.submit("finish_when", str(tmp_path / "go"))
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    service.kill()
    service.start().wait_until_ready()
    ended = service.watch(job.job_id)[-1]
    assert ended.state == Job.STATE_FAILED
    assert "GPT2_MAX_ATTEMPTS" in ended.error.message


def test_a_queue_that_is_full_refuses_more(make_service, tmp_path):
    service = make_service(GPT2_QUEUE_LIMIT="1").start().wait_until_ready()
    for number in range(2):
        job = service.submit("wait", str(tmp_path / f"pid{number}"))
        service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    service.submit("succeed")
    with pytest.raises(grpc.RpcError) as error:
        service.submit("succeed")
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "GPT2_QUEUE_LIMIT" in error.value.details()


def test_lists_come_newest_first_in_pages(service):
    ids = [service.run("succeed", job_id=f"run-{number}").job_id for number in range(3)]
    first = service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(page_size=2))
    assert [job.job_id for job in first.jobs] == [ids[2], ids[1]]
    rest = service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(page_size=2, page_token=first.next_page_token))
    assert [job.job_id for job in rest.jobs] == [ids[0]]
    assert not rest.next_page_token
    of_run = service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id="run-1"))
    assert [job.job_id for job in of_run.jobs] == ["run-1"]


def violations(error: grpc.RpcError) -> list[str]:
    status = rpc_status.from_call(error)
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    return [violation.field for violation in bad_request.field_violations]


@pytest.mark.parametrize("job_id", ["../x", "/etc/passwd", "a/b/c", "a b", "a\x00", ".hidden", "x" * 201, "a/../b"])
def test_a_malformed_job_id_is_refused_naming_the_field(shared_service, job_id):
    with pytest.raises(grpc.RpcError) as error:
        shared_service.submit("succeed", job_id=job_id)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error.value) == ["job.job_id"]


def test_every_wrong_field_is_named_at_once(shared_service):
    with pytest.raises(grpc.RpcError) as error:
        shared_service.submit(job_id="a b", run_id="c d")
    assert violations(error.value) == ["job.job_id", "job.run_id", "uris"]


def test_an_unknown_job_is_not_found(shared_service):
    for call in (shared_service.get, shared_service.watch, shared_service.cancel):
        with pytest.raises(grpc.RpcError) as error:
            call("nowhere")
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_bug_in_a_call_shows_no_details(service):
    source = exporter.MongoSource(database="d", collections=["c"], text_field="t")
    with pytest.raises(grpc.RpcError) as error:
        service.exporter.DescribeSource(exporter.DescribeSourceRequest(source=source))
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "secret-detail" not in error.value.details()
    assert "secret-detail" in service.log.read_text()


def test_log_lines_are_json_with_the_ids_of_run_and_job(service):
    service.run("fail", job_id="run-7/export")
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    failed = [line for line in lines if line["message"].startswith("job failed")]
    assert failed[0]["job_id"] == "run-7/export"
    assert failed[0]["run_id"] == "run-7"
