"""Limits of a service: what is too large or too much is refused, and the service lives."""

import threading

import grpc
import psutil
import pytest

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2

pytestmark = pytest.mark.process

Job = job_pb2.Job


def test_a_request_of_4_mib_and_more_is_refused_and_the_service_lives(shared_service):
    with pytest.raises(grpc.RpcError) as error:
        shared_service.submit("succeed", "x" * (4 * 1024 * 1024 + 1))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert shared_service.run("succeed").state == Job.STATE_SUCCEEDED


def test_a_job_whose_outputs_make_too_large_an_event_fails_and_says_so(shared_service):
    ended = shared_service.run("boast", str(1024 * 1024 + 1))
    assert ended.state == Job.STATE_FAILED
    assert "that a broker takes" in ended.error.message


def test_pages_of_jobs_with_large_plans_fit_into_messages_and_together_have_all(service, tmp_path):
    busy = [service.submit("wait", str(tmp_path / f"pid-{number}")).job_id for number in range(2)]
    for job_id in busy:
        service.wait_for_state(job_id, Job.STATE_RUNNING)
    plan = job_pb2.RunPlan()
    plan.stages.add(start="ImportFiles", name="second").request.update({"uris": ["x" * 200_000]})
    made = [service.submit("succeed", run_id=f"large-{number}", plan=plan).job_id for number in range(50)]
    listed: list[str] = []
    request = jobs_service_pb2.ListJobsRequest(page_size=1000)
    while True:
        page = service.jobs.ListJobs(request, timeout=30)
        listed += [job.job_id for job in page.jobs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert listed == [*reversed(made), *reversed(busy)]


def test_a_thousand_watchers_of_a_job_all_see_its_end(service, tmp_path, capsys):
    flag = tmp_path / "go"
    job = service.submit("finish_when", str(flag))
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    process = psutil.Process(service.process.pid)
    alone = process.memory_full_info().uss / 2**20
    request = jobs_service_pb2.WatchJobRequest(job_id=job.job_id)
    streams = [service.jobs.WatchJob(request, timeout=120) for _ in range(1000)]
    first = [next(stream).job for stream in streams]
    assert len(first) == 1000
    watched = process.memory_full_info().uss / 2**20
    # Others are served meanwhile.
    assert service.submit("succeed").state == Job.STATE_QUEUED
    flag.touch()
    last: list[int] = []
    readers = [
        threading.Thread(target=lambda stream=stream: last.append([*stream][-1].job.state)) for stream in streams
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert last == [Job.STATE_SUCCEEDED] * 1000
    assert service.run("succeed").state == Job.STATE_SUCCEEDED
    with capsys.disabled():
        print(f"\n1,000 watchers: {watched:.1f} MiB, {alone:.1f} before them")
    assert watched - alone < 64
