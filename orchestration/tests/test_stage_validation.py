"""Validation of stages and corrections of runs, over four services with configured answers."""

import re
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.corrections import continue_corrected, read_corrections
from gpt2_orchestration.client.jobs import error_text
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError
from gpt2_orchestration.client.services import open_services
from gpt2_orchestration.pipelines.specification import SpecificationError, load_specification, parse_specification
from gpt2_orchestration.pipelines.validation import load_with_services, validate_stages

STAGES = parse_specification(
    {
        "name": "news",
        "import_files": {"uris": ["file:///data"]},
        "import_checkpoint": {"openai_model": "124M"},
        "train_model": {"config": {"steps": 1, "seed": 2**60 + 1}},
        "register_model": {"model_name": "news"},
    }
).stages()


class Service(jobs_service_pb2_grpc.JobsServiceServicer):
    """A service with configured violations by start call; it records requests."""

    def __init__(self) -> None:
        self.wrong: dict[str, list[tuple[str, str]]] = {}
        self.jobs: list[job_pb2.Job] = []
        self.refused = ""
        self.validated: list[jobs_service_pb2.ValidateStageRequest] = []
        self.continued: list[jobs_service_pb2.ContinueRunRequest] = []

    def ValidateStage(self, request, context):
        self.validated.append(request)
        answer = jobs_service_pb2.ValidateStageResponse()
        for field, description in self.wrong.get(request.start, ()):
            answer.violations.add(field=field, description=description)
        return answer

    def ListJobs(self, request, context):
        return jobs_service_pb2.ListJobsResponse(jobs=self.jobs)

    def ContinueRun(self, request, context):
        self.continued.append(request)
        if self.refused:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refused)
        return jobs_service_pb2.ContinueRunResponse(jobs=[] if request.validate_only else self.jobs)


class OlderService(jobs_service_pb2_grpc.JobsServiceServicer):
    """A service without ValidateStage."""


@pytest.fixture
def services():
    return {name: Service() for name in DEFAULT_PORTS}


@pytest.fixture
def serve():
    """Starts services. Returns their addresses."""
    started = []

    def start(services) -> ClientSettings:
        addresses = {}
        for name, service in services.items():
            server = grpc.server(futures.ThreadPoolExecutor(2))
            jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(service, server)
            addresses[name] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            started.append(server)
        return ClientSettings(addresses=addresses)

    yield start
    for server in started:
        server.stop(None)


def test_violations_of_all_services_are_in_one_error(services, serve):
    services["exporter"].wrong = {"ImportFiles": [("uris[0]", "is outside the allowed roots")]}
    services["trainer"].wrong = {"TrainModel": [("config", "is too large"), ("config.lora", "is not for adafactor")]}
    services["registry"].wrong = {"RegisterModel": [("label", "is none of the labels")]}
    with pytest.raises(SpecificationError) as error:
        validate_stages(STAGES, serve(services), "news.yaml")
    assert str(error.value).splitlines() == [
        "news.yaml: 4 errors",
        "  import_files.uris[0]: is outside the allowed roots",
        "  train_model.config: is too large",
        "  train_model.config.lora: is not for adafactor",
        "  register_model.label: is none of the labels",
    ]
    training = next(item for item in services["trainer"].validated if item.start == "TrainModel")
    assert list(training.artifacts) == ["dataset", "checkpoint"]
    assert training.request["config"]["seed"] == str(2**60 + 1)
    assert not any(service.continued for service in services.values())


def test_an_older_service_is_a_warning_and_an_unavailable_one_an_error(services, serve):
    services["tokenizer"] = OlderService()
    settings = serve(services)
    [warning] = validate_stages(STAGES, settings)
    assert warning.startswith("the tokenizer is too old to validate stages in advance")
    with open_services(settings) as opened, pytest.raises(ServiceError) as error:
        opened.clients["tokenizer"].runs_page((), 1, "")
    assert re.fullmatch(
        r"the tokenizer at [\d.:]+ is older than this command and does not have the call: upgrade it, .*_ADDRESS .*",
        error.value.reason,
    )
    away = ClientSettings(addresses={**settings.addresses, "registry": "127.0.0.1:1"})
    with pytest.raises(ServiceError, match=r"the registry at 127\.0\.0\.1:1 does not answer"):
        validate_stages(STAGES, away)


def planned_run(services) -> None:
    """A run whose training has failed, and whose plan has the registry next."""
    plan = job_pb2.RunPlan()
    plan.stages.add(start="RegisterModel")
    services["trainer"].jobs = [
        job_pb2.Job(
            job_id="news/train-model", run_id="news", kind="TrainModel", state=job_pb2.Job.STATE_FAILED, plan=plan
        )
    ]
    done = job_pb2.Job(job_id="news/first", run_id="news", kind="EncodeCorpus", state=job_pb2.Job.STATE_SUCCEEDED)
    services["tokenizer"].jobs = [done]
    services["trainer"].jobs[0].create_time.seconds = 1


CORRECTIONS = ["register_model.label=staging", "train_model.config={lora: null, seed: 1152921504606846977}"]


def test_corrections_are_applied_when_all_services_accept_them(services, serve):
    planned_run(services)
    settings = serve(services)
    answer = continue_corrected(settings, "news", read_corrections(CORRECTIONS))
    assert "news/train-model" in [job.job_id for job in answer.jobs]
    for service in services.values():
        assert [request.validate_only for request in service.continued] == [True, False]
        corrections = service.continued[1].corrections
        assert sorted(corrections) == ["register-model", "train-model"]
        assert corrections["register-model"]["label"] == "staging"
        config = corrections["train-model"]["config"]
        assert config["lora"] is None
        assert config["seed"] == "1152921504606846977"


def test_nothing_is_corrected_when_one_service_refuses_or_is_older(services, serve):
    planned_run(services)
    services["registry"].refused = "no such label"
    with pytest.raises(ServiceError, match="no such label"):
        continue_corrected(serve(services), "news", read_corrections(CORRECTIONS))
    assert all(request.validate_only for service in services.values() for request in service.continued)
    for service in services.values():
        service.continued.clear()

    class Older(OlderService):
        ListJobs = Service.ListJobs
        jobs = ()

    with pytest.raises(ServiceError, match="the exporter is too old for corrections"):
        continue_corrected(serve({**services, "exporter": Older()}), "news", read_corrections(CORRECTIONS))
    assert not any(service.continued for service in services.values())


def test_corrections_of_unknown_or_succeeded_stages_are_rejected_before_any_call(services, serve):
    planned_run(services)
    wrong = ["regster_model.label=x", "first.uris=[]", "train_model.config.stepz=1", "train-model.noise=0"]
    with pytest.raises(SpecificationError) as error:
        continue_corrected(serve(services), "news", read_corrections(wrong))
    assert str(error.value).splitlines()[1:] == [
        "  regster_model: is not a stage of run news; did you mean register-model?",
        "  first: has succeeded and cannot be corrected; stages that can be corrected: train-model, register-model",
        "  train_model.config.stepz: unknown field; did you mean steps?",
        "  train-model: names the same stage as train_model; use one of them",
    ]
    services["trainer"].jobs[0].ClearField("plan")
    with pytest.raises(ServiceError, match=r"run news has no plan: .*`gpt2 run FILE --set"):
        continue_corrected(serve(services), "news", read_corrections(CORRECTIONS))
    with pytest.raises(SpecificationError, match="--set label: names no field"):
        read_corrections(["label=x"])
    assert not any(service.continued or service.validated for service in services.values())


def test_the_error_of_an_invalid_request_has_the_command_that_corrects_it():
    job = job_pb2.Job(job_id="news/train-model", run_id="news", state=job_pb2.Job.STATE_FAILED)
    job.error.code, job.error.message = 3, "config.steps: must be 1 or greater"
    assert error_text(job) == "config.steps: must be 1 or greater"
    job.plan.SetInParent()
    assert error_text(job).endswith("; correct it with `gpt2 runs continue news --set train_model.FIELD=VALUE`")
    job.error.code = 14
    assert error_text(job) == "config.steps: must be 1 or greater"


WRONG = """
name: news
import_files: {uris: ["file:///data"]}
train_tokenizer: [many]
import_tokenizer:
train_model:
  model_size: 124M
  model: {n_layer: 12}
  config: {stepz: 7, noise: .nan, learning_rate: -1, seed: 36893488147419103232}
register_model: {model_name: 2026-01-31, label: news}
trian_model: {}
"""


class HangingService(Service):
    """A service that does not answer until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def ValidateStage(self, request, context):
        self.released.wait(30)
        return super().ValidateStage(request, context)


def by_the_rules(file) -> list[str]:
    with pytest.raises(SpecificationError) as error:
        load_specification(file)
    return str(error.value).splitlines()[1:]


def test_local_violations_and_those_of_services_are_in_one_error(services, serve, tmp_path):
    file = tmp_path / "news.yaml"
    file.write_text(WRONG)
    offline = by_the_rules(file)
    services["exporter"].wrong = {"ImportFiles": [("uris[0]", "is outside the allowed roots")]}
    services["trainer"].wrong = {
        "TrainModel": [("config.stepz", "is unknown here too"), ("config.beta", "is not for adafactor")]
    }
    services["registry"].wrong = {"RegisterModel": [("label", "is none of the labels")]}
    settings = serve(services)

    def errors(settings) -> list[str]:
        with pytest.raises(SpecificationError) as error:
            load_with_services(file, {}, settings)
        return str(error.value).splitlines()

    further = [
        "  import_files.uris[0]: is outside the allowed roots",
        "  train_model.config.beta: is not for adafactor",
        "  register_model.label: is none of the labels",
    ]
    assert errors(settings) == [f"{file}: {len(offline) + 3} errors", *offline, *further]
    # As written, valid or not, in protobuf's JSON form; a section that is not a mapping is skipped.
    asked = {item.start: item.request for service in services.values() for item in service.validated}
    assert sorted(asked) == ["ImportFiles", "ImportTokenizer", "RegisterModel", "TrainModel"]
    config = {"stepz": 7, "noise": "NaN", "learning_rate": -1, "seed": str(2**65)}
    assert json_format.MessageToDict(asked["TrainModel"])["config"] == config
    assert asked["RegisterModel"]["model_name"] == "2026-01-31"
    assert not any(service.continued for service in services.values())

    # Unavailable, older and hanging services affect neither the others' errors nor add one.
    services["trainer"] = hanging = HangingService()
    services["tokenizer"] = OlderService()
    some = serve({"trainer": hanging, "tokenizer": services["tokenizer"]}).addresses
    away = {**settings.addresses, **some, "registry": "127.0.0.1:1"}
    assert errors(ClientSettings(addresses=away)) == [f"{file}: {len(offline) + 1} errors", *offline, further[0]]
    hanging.released.set()
    nobody = ClientSettings(addresses=dict.fromkeys(DEFAULT_PORTS, "127.0.0.1:1"))
    assert errors(nobody) == [f"{file}: {len(offline)} errors", *offline]
    # Content that is not a mapping is not validated by services.
    file.write_text("- news")
    assert errors(settings) == [f"{file}: must be a mapping of sections; see orchestration/examples"]


@pytest.mark.process
def test_errors_of_stage_commands_include_those_of_services(services, serve, tmp_path):
    services["trainer"].wrong = {"TrainModel": [("config.noise", "is known"), ("config.epochs", "goes without steps")]}
    addresses = {f"GPT2_{name.upper()}_ADDRESS": address for name, address in serve(services).addresses.items()}
    command = [
        Path(sys.executable).with_name("gpt2"),
        "train",
        "file:///d",
        "--size",
        "124M",
        "--set",
        "config.noise=3",
    ]
    result = subprocess.run(command, cwd=tmp_path, env=addresses, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "gpt2: 2 errors",
        "  train_model.config.noise: must be 0 to 1, not 3.0",
        "  train_model.config.epochs: goes without steps",
    ]


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--size", "124M"], "auto"),
        (["--size", "124M", "--recipe", "none"], None),
        (["--size", "124M", "--recipe", "scratch"], "scratch"),
        (["--size", "124M", "--set", "config.recipe=small_data"], "small_data"),
        (["--checkpoint", "file:///c"], None),
        (["--checkpoint", "file:///c", "--recipe", "auto"], "auto"),
        (["--continue", "file:///c"], None),
    ],
)
def test_a_new_model_has_a_recipe_unless_it_is_declined(services, serve, tmp_path, options, recipe):
    services["trainer"].wrong = {"TrainModel": [("config.noise", "is wrong, so that nothing starts")]}
    addresses = {f"GPT2_{name.upper()}_ADDRESS": address for name, address in serve(services).addresses.items()}
    command = [Path(sys.executable).with_name("gpt2"), "train", "file:///d", *options]
    result = subprocess.run(command, cwd=tmp_path, env=addresses, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    [training] = (item for item in services["trainer"].validated if item.start == "TrainModel")
    assert json_format.MessageToDict(training.request).get("config", {}).get("recipe") == recipe
