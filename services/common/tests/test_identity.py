"""Who calls, as services prove and record it: client tokens, the shared token, client certificates, nobody."""

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gpt2.events.v1 import events_pb2
from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.authentication import ClientAuthenticator, open_authenticator
from gpt2_common.clients import (
    ClientsFile,
    ClientsFileError,
    UnknownClient,
    add_client,
    read_clients,
    remove_client,
    token_proof,
)
from gpt2_common.errors import PermissionDenied, Unauthenticated
from gpt2_common.healthcheck import is_serving
from gpt2_common.identity import SHARED_TOKEN, UNAUTHENTICATED, Identity
from gpt2_common.settings import ServiceSettings, SettingsError

from .brokers import TOPIC, EmbeddedBroker
from .certificates import Authority
from .conftest import FakeService
from .test_brokers import plan, records_until
from .test_server_settings import fails_to_start

Job = job_pb2.Job


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def refused(call, code=grpc.StatusCode.UNAUTHENTICATED) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code
    return error.value.details()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def tokens(folder):
    return {name: add_client(folder / "clients", name) for name in ("ann", "bob")}


@pytest.fixture(scope="module")
def broker(folder):
    made = EmbeddedBroker(folder).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def service(folder, tokens, broker):
    settings = {"GPT2_CLIENTS_FILE": str(folder / "clients"), "GPT2_KAFKA_BOOTSTRAP_SERVERS": broker.address}
    made = FakeService(folder, **settings).start().wait_until_ready()
    yield made
    made.kill()


@pytest.fixture
def clients(folder):
    """The file's path; what a test has made of it is undone."""
    path = folder / "clients"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_each_call_is_recorded_with_its_own_caller(service, tokens):
    def submit(number: int) -> tuple[str, str]:
        name = ("ann", "bob")[number % 2]
        request = exporter_service_pb2.ImportFilesRequest(uris=["nothing"])
        return name, service.exporter.ImportFiles(request, timeout=10, metadata=bearer(tokens[name])).job.actor

    with ThreadPoolExecutor(8) as pool:
        for name, actor in pool.map(submit, range(16)):
            assert actor == name
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    callers = [line["caller"] for line in lines if line.get("rpc", "").endswith("/ImportFiles")]
    assert sorted(callers) == 8 * ["ann"] + 8 * ["bob"]


def test_calls_that_prove_no_name_are_refused(service, tokens):
    reflection = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    query = reflection_pb2.ServerReflectionRequest(list_services="")
    for service.metadata in ([], bearer(""), bearer("wrong"), bearer(token_proof(tokens["ann"]))):
        assert "GPT2_CLIENT_TOKEN" in refused(lambda: service.submit("succeed"))
        refused(lambda: service.watch("x"))
        refused(lambda: list(reflection.ServerReflectionInfo(iter([query]), metadata=service.metadata)))
    assert list(reflection.ServerReflectionInfo(iter([query]), metadata=bearer(tokens["ann"])))


def test_stages_that_events_start_keep_the_actor_and_cancelling_names_its_own(service, tokens, broker, tmp_path):
    service.metadata = bearer(tokens["ann"])
    stages = [{"name": "second", "request": {"uris": ["nothing"]}}, {"name": "third", "request": {"uris": ["die"]}}]
    service.submit("succeed", run_id="planned", plan=plan(*stages))
    deadline = time.monotonic() + 60
    while len(jobs := list_run(service, "planned")) < 3 or jobs[0].state != Job.STATE_FAILED:
        assert time.monotonic() < deadline, jobs
        time.sleep(0.05)
    assert [job.actor for job in jobs] == 3 * ["ann"]
    records = records_until(broker.address, TOPIC, lambda found: len(of_run(found, "planned")) == 9)
    assert set(of_run(records, "planned")) == {"ann"}

    pid_file = tmp_path / "pid"
    job = service.submit("wait", str(pid_file), run_id="stopped", plan=plan(*stages))
    service.metadata = bearer(tokens["bob"])
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    request = jobs_service_pb2.CancelRunRequest(run_id="stopped", reason="enough")
    service.jobs.CancelRun(request, timeout=10, metadata=service.metadata)
    ended = service.wait_for_state(job.job_id, Job.STATE_CANCELLED)
    assert (ended.actor, ended.error.message) == ("ann", "cancelled by bob: enough")

    # Who corrects a job answers for it, and so for the stages that it leads to; who only continues it does not.
    correction = jobs_service_pb2.ContinueRunRequest(run_id="stopped")
    correction.corrections["second"].update({"uris": ["succeed"]})
    for request, actor in ((jobs_service_pb2.ContinueRunRequest(run_id="planned"), "ann"), (correction, "bob")):
        [again] = service.jobs.ContinueRun(request, timeout=10, metadata=service.metadata).jobs
        assert again.actor == actor
        assert service.get(again.job_id).actor == actor
    service.cancel(job.job_id)
    service.wait_for_state(job.job_id, Job.STATE_CANCELLED)


def list_run(service, run_id):
    request = jobs_service_pb2.ListJobsRequest(run_id=run_id)
    return list(service.jobs.ListJobs(request, timeout=10, metadata=service.metadata).jobs)


def of_run(records, run_id):
    return [
        events_pb2.JobStateChanged.FromString(record.value).job.actor
        for record in records
        if record.key == run_id.encode()
    ]


def test_a_token_is_rotated_and_revoked_while_the_service_runs(service, clients):
    first = add_client(clients, "carol")
    second = add_client(clients, "carol")
    old = next(client.token_id for client in read_clients(clients) if client.proof == token_proof(first))
    for service.metadata in (bearer(first), bearer(second)):
        assert service.submit("nothing").actor == "carol"
    assert remove_client(clients, "carol", old) == 1
    service.metadata = bearer(first)
    refused(lambda: service.submit("nothing"))
    service.metadata = bearer(second)
    assert service.submit("nothing").actor == "carol"
    for token in (first, second):
        assert token not in clients.read_text() + service.log.read_text()


def test_a_clients_file_that_breaks_keeps_what_it_said(service, clients, tokens):
    service.metadata = bearer(tokens["ann"])
    for content in ("mallory gpt2_a-token-in-place-of-its-hash\n", None):
        clients.write_text(content) if content else clients.unlink()
        for _ in range(3):
            assert service.submit("nothing").actor == "ann"
    errors = [line for line in service.log.read_text().splitlines() if "stay in force" in line]
    assert len(errors) == 2, errors
    assert "clients, line 1: after the name there must be" in errors[0]
    assert "a-token-in-place" not in errors[0]
    # Nobody is left in it: then nobody may call.
    clients.write_text("")
    refused(lambda: service.submit("nothing"))


HASH = token_proof("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"# comment\n\nann\t{HASH} may-act-for-others # boss\nann {token_proof('y')}\nbob certificate\n", None),
        ("ann", "line 1: after the name there must be 'sha256:' with 64 digits"),
        (f"\ufeff# comment\r\n\r\nann\t{HASH} may-act-for-others\r\nann {token_proof('y')}\r\nbob certificate", None),
        (f"\nann {HASH.upper()}", "line 2: after the name there must be"),
        (f"ann {HASH} may_act", "line 1: the only right is 'may-act-for-others'"),
        (f"unauthenticated {HASH}", "line 1: the name cannot be used"),
        (f"ann(x) {HASH}", "line 1: the name cannot be used"),
        (f"ann {HASH}\n#\nbob {HASH}", "line 3: has the token or the certificate of line 1"),
        ("ann certificate\nann certificate", "line 2: has the token"),
        ("\0", "line 1: the name cannot be used"),
    ],
)
def test_a_clients_file_is_read_or_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "clients"
    path.write_text(text)
    if message is None:
        found = [(client.name, client.token_id != "", client.may_act_for_others) for client in read_clients(path)]
        assert found == [("ann", True, True), ("ann", True, False), ("bob", False, False)]
        return
    with pytest.raises(ClientsFileError, match=message.replace("(", r"\(")):
        read_clients(path)
    with pytest.raises(ClientsFileError):
        add_client(path, "carol")
    assert path.read_text() == text


def test_clients_are_added_and_removed(tmp_path):
    path = tmp_path / "clients"
    with pytest.raises(ClientsFileError, match="cannot be used"):
        add_client(path, "two words")
    with pytest.raises(ClientsFileError, match="cannot be written"):
        add_client(tmp_path / "none" / "clients", "ann")
    path.write_text("# ours\nbob certificate")
    path.chmod(0o640)
    owner = (1234, 1234) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(path, *owner)
    token = add_client(path, "ann", may_act_for_others=True)
    client = read_clients(path).with_token(token)
    assert (client.name, client.may_act_for_others) == ("ann", True)
    for name, token_id in (("carol", None), ("ann", "ffffffffffffff"), ("bob", "f")):
        with pytest.raises(UnknownClient, match="has no client"):
            remove_client(path, name, token_id)
    with pytest.raises(ClientsFileError, match="--token: is empty"):
        remove_client(path, "ann", "")
    assert remove_client(path, "ann") == 1
    assert path.read_text() == "# ours\nbob certificate\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert [item.name for item in tmp_path.iterdir()] == ["clients"]


def test_a_clients_file_is_read_again_though_its_time_and_size_are_as_before(tmp_path):
    # As when a service could not read a new file, and its owner or mode is put right.
    path = tmp_path / "clients"
    path.write_text(f"ann {token_proof('old')}\n")
    followed = ClientsFile(path)
    before = path.stat()
    path.write_text(f"ann {token_proof('new')}\n")
    while path.stat().st_ctime_ns == before.st_ctime_ns or path.stat().st_mtime_ns != before.st_mtime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert followed.current().with_token("new").name == "ann"


def test_a_broken_clients_file_stops_the_start(make_service, tmp_path):
    path = tmp_path / "clients"
    with pytest.raises(SettingsError, match=f"GPT2_CLIENTS_FILE: {path}: cannot be read.*`gpt2 clients add NAME`"):
        open_authenticator(ServiceSettings(clients_file=path))
    path.write_text("ann nonsense\n")
    log = fails_to_start(make_service(GPT2_CLIENTS_FILE=str(path)))
    assert f"GPT2_CLIENTS_FILE: {path}, line 1: after the name" in log
    assert "Traceback" not in log


def test_whether_a_service_serves_can_be_watched_without_a_token(service):
    with grpc.insecure_channel(f"localhost:{service.port}") as channel:
        answers = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(answers).status == health_pb2.HealthCheckResponse.SERVING
        answers.cancel()


def test_a_client_certificate_names_the_caller(make_service, tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server", x509.DNSName("localhost"))
    service = make_service(
        GPT2_TLS_CERTIFICATE_FILE=str(certificate),
        GPT2_TLS_KEY_FILE=str(key),
        GPT2_TLS_CLIENT_CA_FILE=str(authority.file),
    )

    def credentials(*certificate_and_key):
        certificate, key = (path.read_bytes() for path in certificate_and_key)
        return grpc.ssl_channel_credentials(authority.file.read_bytes(), key, certificate)

    service.credentials = credentials(*authority.sign("Ann Smith", x509.DNSName("laptop.example")))
    service.start().wait_until_ready()
    assert service.submit("nothing").actor == "Ann Smith"
    monkeypatch.setenv("GPT2_TLS_CERTIFICATE_FILE", str(authority.file))
    assert not is_serving(f"localhost:{service.port}")
    for variable, path in zip(("CERTIFICATE", "KEY"), authority.sign("probe"), strict=True):
        monkeypatch.setenv(f"GPT2_CLIENT_{variable}_FILE", str(path))
    assert is_serving(f"localhost:{service.port}")
    workload = x509.UniformResourceIdentifier("spiffe://cluster/trainer")
    for names, actor in (((workload,), workload.value), ((), None)):
        other = credentials(*authority.sign("Ann (by root)", *names))
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{service.port}", other, options) as channel:
            service.exporter = type(service.exporter)(channel)
            if actor is None:
                assert "certificate names nobody" in refused(lambda: service.submit("nothing"))
            else:
                assert service.submit("nothing").actor == actor


def test_tokens_and_certificates_together(tmp_path):
    path = tmp_path / "clients"
    path.write_text(f"lab certificate may-act-for-others\nempty {token_proof('')}\n")
    ann = add_client(path, "ann")
    ours, stranger = {"x509_common_name": [b"lab"]}, {"x509_common_name": [b"stranger"]}

    def identify(authenticator, token, peer):
        metadata = {} if token is None else dict(bearer(token))
        try:
            return asyncio.run(authenticator.authenticate(metadata, peer))
        except Unauthenticated:
            return None

    lab = Identity(actor="lab", may_act_for_others=True)
    both = ClientAuthenticator(ClientsFile(path), "shared", certificates=True)
    for token, peer, expected in (
        (ann, ours, Identity(actor="ann")),
        (None, ours, lab),
        ("shared", ours, lab),
        ("shared", stranger, Identity(actor="stranger")),
        ("shared", {}, SHARED_TOKEN),
        ("wrong", ours, None),
        (None, stranger, None),
        ("", {}, None),
    ):
        assert identify(both, token, peer) == expected, (token, peer)
    # A certificate that nobody has asked for proves nothing.
    assert identify(ClientAuthenticator(ClientsFile(path), None, certificates=False), None, ours) is None
    assert identify(ClientAuthenticator(None, None, certificates=False), "any", ours) == UNAUTHENTICATED
    bare = ClientAuthenticator(None, None, certificates=True)
    assert identify(bare, "any", stranger) == Identity(actor="stranger")
    assert identify(bare, None, {"x509_common_name": [b"unauthenticated"]}) is None


def test_who_may_name_another_actor():
    assert Identity(actor="ann").acting_for("") == Identity(actor="ann").acting_for("ann") == "ann"
    with pytest.raises(PermissionDenied, match="'ann' may not act for 'bob': leave actor empty"):
        Identity(actor="ann").acting_for("bob")
    assert Identity(actor="page", may_act_for_others=True).acting_for("bob") == "bob (by page)"
    assert SHARED_TOKEN.acting_for("bob") == "bob (shared token)"
    assert UNAUTHENTICATED.acting_for("") == "unauthenticated"
    assert UNAUTHENTICATED.acting_for("ann (by page)") == "ann (by page) (unauthenticated)"
