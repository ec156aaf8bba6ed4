"""Plans are checked when they are accepted, and runs are continued with corrections, all or none of which are made."""

import math
import sqlite3

import grpc
import pytest

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_common.errors import InvalidRequest
from gpt2_rules.forms import read_form, violations_besides

Job = job_pb2.Job


def plan(*stages):
    planned = job_pb2.RunPlan()
    for start, request in stages:
        planned.stages.add(start=start).request.update(request)
    return planned


def refusal(call, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code
    return error.value.details()


def continued(service, run_id, corrections, validate_only=False):
    request = jobs_service_pb2.ContinueRunRequest(run_id=run_id, validate_only=validate_only)
    for stage, fields in corrections.items():
        request.corrections[stage].update(fields)
    return service.jobs.ContinueRun(request, timeout=10).jobs


def test_mistakes_of_all_stages_are_in_one_answer_and_nothing_is_created(service):
    stages = plan(
        ("TrainTokenizer", {"vocabulary_size": 100}),
        ("EncodeCorpus", {"validation_fractoin": 0.1}),
        ("TrainModel", {"model_size": "2B", "config": {"steps": 5, "learning_rate": -1}}),
        ("RegisterModel", {"model_name": "m", "label": "Staging Area"}),
        ("TrainTokenizer", {"vocabulary_size": math.nan}),
    )
    details = refusal(lambda: service.submit("succeed", run_id="wrong", plan=stages))
    for said in (
        "job.plan.stages[0].request.vocabulary_size: must be 257 to 1,000,000, not 100",
        "job.plan.stages[1].request.validation_fractoin: unknown field; did you mean validation_fraction?",
        "job.plan.stages[2].request.model_size: must be one of 124M",
        "job.plan.stages[2].request.config.learning_rate: must be over 0, not -1.0",
        "job.plan.stages[3].request.model_uri: is required, as no stage before makes the artifact 'model'",
        "job.plan.stages[3].request.label: must be letters",
        "job.plan.stages[4].request: cannot be read: ",
    ):
        assert said in details
    assert not service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id="wrong"), timeout=10).jobs


def test_of_what_cannot_be_read_nothing_is_missed_and_of_one_choice_the_same_is_too_many():
    for form in ({"model_size": "124M", "model": 1, "config": 2}, {"config": 2, "model": 1, "model_size": "124M"}):
        request, unread = read_form(form, trainer_service_pb2.TrainModelRequest)
        assert sorted(path for path, _ in unread) == ["config", "model", "model_size"]
        assert [path for path, _ in violations_besides(request, unread)] == ["dataset_uri"]


def test_a_plan_whose_services_cannot_be_asked_is_accepted_with_warnings(service):
    job = service.submit("succeed", run_id="alone", plan=plan(("TrainTokenizer", {})))
    [warning] = job.warnings
    assert "train-tokenizer was checked by its rules alone" in warning
    assert "GPT2_TOKENIZER_ADDRESS" in warning
    assert service.submit("succeed", run_id="alone", plan=plan(("TrainTokenizer", {}))).job_id == job.job_id


def test_a_failed_run_is_continued_with_corrections_all_or_none(service):
    stages = plan(("TrainTokenizer", {"vocabulary_size": 300, "min_frequency": 3}))
    failed = service.run("fail", run_id="mended", plan=stages)
    assert failed.state == Job.STATE_FAILED
    right = {"import-files": {"uris": ["succeed"]}}
    both_wrong = {"import-files": {"uris": []}, "train-tokenizer": {"vocabulary_size": 1, "x": 1}}
    for validate_only in (True, False):
        wrong = {**right, "train-tokenizer": {"vocabulary_size": 1}}
        assert "train-tokenizer.vocabulary_size" in refusal(
            lambda w=wrong, v=validate_only: continued(service, "mended", w, v)
        )
    details = refusal(lambda: continued(service, "mended", both_wrong))
    assert "import-files.uris" in details
    assert "train-tokenizer.x" in details
    corrections = {**right, "train-tokenizer": {"vocabulary_size": 400, "min_frequency": None}}
    unreadable = {"train-tokenizer": {"min_frequency": math.nan}}
    assert "corrections.train-tokenizer" in refusal(lambda: continued(service, "mended", unreadable))
    assert not continued(service, "mended", corrections, validate_only=True)
    assert service.get(failed.job_id) == failed

    [again] = continued(service, "mended", corrections)
    assert again.request_digest != failed.request_digest
    done = service.watch(failed.job_id)[-1]
    assert done.state == Job.STATE_SUCCEEDED
    assert dict(done.plan.stages[0].request) == {"vocabulary_size": 400}
    # Its event may be under way with the plan as it is; asking publishes nothing again.
    events = outbox(service)
    for late in (right, {"train-tokenizer": {"vocabulary_size": 500}}):
        for validate_only in (True, False):
            refusal(
                lambda c=late, v=validate_only: continued(service, "mended", c, v), grpc.StatusCode.FAILED_PRECONDITION
            )
    continued(service, "mended", {}, validate_only=True)
    assert outbox(service) == events
    assert service.get(failed.job_id) == done


def outbox(service):
    with sqlite3.connect(service.folder / "jobs.db") as database:
        return database.execute("SELECT * FROM outbox").fetchall()


def test_the_violations_of_many_mistakes_fit_into_an_answer():
    error = InvalidRequest([(f"job.plan.stages[{number}].start", "is required" * 10) for number in range(500)])
    assert len(error.message) < 2600
    assert error.message.endswith("more: correct these first")
