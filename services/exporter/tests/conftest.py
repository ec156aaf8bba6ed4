import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pymongo
import pytest
from free_ports import free_port
from go_programs import build_go_program

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_exporter.jobs import export_corpus, import_files
from gpt2_exporter.settings import ExporterSettings


class MongoServer:
    """A server of MongoDB's protocol as a process, which can be killed and started again on the same port and data."""

    def __init__(self, command, folder, port) -> None:
        self.command, self.folder, self.port = command, folder, port
        self.uri = f"mongodb://127.0.0.1:{port}"
        self.process = None

    def start(self):
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, cwd=self.folder)
        deadline = time.monotonic() + 60
        with pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=500) as client:
            while True:
                try:
                    client.admin.command("ping")
                    return
                except pymongo.errors.PyMongoError:
                    assert time.monotonic() < deadline, (self.folder / "out").read_text()
                    assert self.process.poll() is None, (self.folder / "out").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait(30)


def embedded_server(folder):
    port = free_port()
    command = [sys.executable, "-m", "gpt2_orchestration.stack.mongodb", str(folder / "data"), f"127.0.0.1:{port}"]
    return MongoServer(command, folder, port)


@pytest.fixture(scope="session")
def lying_uri(tmp_path_factory):
    """A server that loses and doubles documents whose ids are of mixed types; its address."""
    folder, port = tmp_path_factory.mktemp("lying"), free_port()
    command = [str(Path(sys.executable).with_name("nx-27017")), "--data-dir", str(folder / "data")]
    command += ["--host", "127.0.0.1", "-p", str(port), "--log-file", str(folder / "log")]
    server = MongoServer([*command, "--pid-file", str(folder / "pid")], folder, port)
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(scope="session")
def mongo_port(tmp_path_factory):
    """The embedded server as a process; its port."""
    server = embedded_server(tmp_path_factory.mktemp("mongo"))
    server.start()
    yield server.port
    server.kill()


@pytest.fixture(scope="session")
def ferretdb():
    """FerretDB with SQLite, built from its Go module."""
    return build_go_program(Path(__file__).with_name("ferretdb"), "ferretdb", "-tags", "ferretdb_sqlite")


# Where Go is not, FerretDB cannot be built; a MongoDB is there only where its address is given.
SERVERS = ["embedded"]
SERVERS += ["ferretdb"] if shutil.which("go") else []
OWN_SERVERS = tuple(SERVERS)
SERVER_FIXTURES = frozenset(("any_uri", "mongo", "mongo_port", "own_server", "start_server", "wire"))
SERVERS += ["mongodb"] if os.environ.get("GPT2_TEST_MONGODB_URI") else []


@pytest.fixture
def start_server(request, tmp_path_factory):
    """Starts a server of a kind; it is gone after the test."""
    servers = []

    def start(kind):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "ferretdb":
            port = free_port()
            binary = request.getfixturevalue("ferretdb")
            server = MongoServer([str(binary), f"127.0.0.1:{port}", str(folder)], folder, port)
        else:
            server = embedded_server(folder)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


# The tests that kill a server of each kind represent those of FerretDB.
@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.exhaustive if kind == "ferretdb" else ()) for kind in SERVERS]
)
def any_uri(request):
    """The address of each kind of server in turn."""
    if request.param == "mongodb":
        return os.environ["GPT2_TEST_MONGODB_URI"]
    if request.param == "embedded":
        return f"mongodb://127.0.0.1:{request.getfixturevalue('mongo_port')}"
    return request.getfixturevalue("start_server")(request.param).uri


@pytest.fixture(params=OWN_SERVERS)
def own_server(request, start_server):
    """A server of each kind in turn that the test may kill."""
    return start_server(request.param)


@pytest.fixture
def mongo(mongo_port):
    """A client whose databases are gone after the test."""
    with pymongo.MongoClient("127.0.0.1", mongo_port) as client:
        yield client
        for name in client.list_database_names():
            if name != "admin":
                client.drop_database(name)


class Wire:
    """A TCP proxy before the server that can corrupt or cut connections.

    Bytes `~~~` on their way to the client become an encoded lone surrogate, which is broken UTF-8 of the same length.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.cut_after: int | None = None
        self.connections_cut = 0
        self._seen = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                upstream = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(client, upstream, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(upstream, client, True), daemon=True).start()

    def _pass(self, source, target, answers):
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                if answers:
                    block = block.replace(b"~~~", b"\xed\xa0\x80")
                    self._seen += len(block)
                    if self.cut_after is not None and self._seen > self.cut_after:
                        self._seen = 0
                        self.connections_cut += 1
                        break
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self._server.close()


@pytest.fixture
def wire(mongo_port):
    wire = Wire(mongo_port)
    yield wire
    wire.close()


@pytest.fixture
def settings(request, tmp_path):
    """Settings of a service; of MongoDB only where the test asks for a server."""
    served = not SERVER_FIXTURES.isdisjoint(request.fixturenames)
    return ExporterSettings(
        mongodb_uri=f"mongodb://127.0.0.1:{request.getfixturevalue('mongo_port') if served else 1}",
        mongodb_timeout_seconds=3,
        artifact_root=str(tmp_path / "artifacts"),
        allowed_roots=str(tmp_path / "texts"),
    )


class Progress:
    """Records the progress of a job, and calls a function at each report."""

    def __init__(self) -> None:
        self.reports = []
        self.interruption = Interruption()
        self.on_progress = lambda _: None

    def __call__(self, progress):
        self.reports.append(progress)
        self.on_progress(progress)


@pytest.fixture
def progress():
    return Progress()


@pytest.fixture
def make_context(settings, progress):
    def make(job_id="job", attempt=1, request_digest="digest", **changes):
        identity = JobIdentity(
            service="exporter", job_id=job_id, run_id=job_id, request_digest=request_digest, attempt=attempt
        )
        changed = settings.model_copy(update=changes)
        return JobContext(identity, changed, progress, progress.interruption)

    return make


@pytest.fixture
def context(make_context):
    return make_context()


@pytest.fixture
def child_environment(settings):
    """The environment of a child process with the settings of the test."""
    return {
        **os.environ,
        "GPT2_MONGODB_URI": settings.mongodb_uri.get_secret_value(),
        "GPT2_ARTIFACT_ROOT": settings.artifact_root,
        "GPT2_ALLOWED_ROOTS": settings.allowed_roots,
        "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
    }


class Corpus:
    """A corpus artifact of a job, as the tests read it."""

    def __init__(self, output):
        self.counts = dict(output.counts)
        self.properties = dict(output.properties)
        self.digest = output.digest
        self.folder = Path(output.uri.removeprefix("file://"))

    @property
    def shards(self):
        return sorted(self.folder.glob("corpus-*.parquet"))

    @property
    def rows(self):
        return [row for shard in self.shards for row in pq.read_table(shard).to_pylist()]

    @property
    def texts(self):
        return [row["text"] for row in self.rows]

    @property
    def rejects(self):
        return [json.loads(line) for line in (self.folder / "rejects.jsonl").read_text().splitlines()]

    @property
    def manifest(self):
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())


@pytest.fixture
def export():
    """Runs the job of a request in this process."""

    def run(request, context):
        work = export_corpus if isinstance(request, pb.ExportCorpusRequest) else import_files
        [output] = work(request, context)
        return Corpus(output)

    return run


@pytest.fixture
def open_corpus():
    return Corpus
