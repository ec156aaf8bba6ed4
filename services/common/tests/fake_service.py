"""A service whose jobs do nothing, or end badly in every way, run as a real process by the tests.

It borrows the exporter's protocol: what a job does is the first URI of an ImportFiles request.
"""

import os
import signal
import sys
import time
from pathlib import Path

from gpt2.exporter.v1 import exporter_service_pb2, exporter_service_pb2_grpc
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import output
from gpt2_common.jobs.definition import JobKind
from gpt2_common.server import ServiceDefinition, main
from gpt2_common.settings import ServiceSettings


def work(request, context):
    action, *arguments = request.uris
    return globals()[f"do_{action}"](context, *arguments)


def do_succeed(context, text="hello"):
    context.report("writing", 0, 1, "files")
    with context.create("corpus", "corpus") as writer:
        (writer.folder / "text.txt").write_text(text)
        context.report("writing", 1, 1, "files")
        print("a library prints to standard output")
        return [output("corpus", writer.commit({"documents": 1}))]


def do_nothing(_context):
    return []


def do_fail(_context):
    raise FailedPrecondition("the collection is empty: fill it")


def do_fail_unless(context, flag_file):
    if not Path(flag_file).exists():
        raise FailedPrecondition(f"{flag_file} is missing")
    return do_succeed(context)


def do_boast(context, size):
    with context.create("corpus", "corpus") as writer:
        (writer.folder / "text.txt").write_text("x")
        return [output("corpus", writer.commit({"documents": 1}, {"boast": "x" * int(size)}))]


def do_bug(_context):
    raise KeyError("secret-detail")


def do_disk_full(_context):
    raise OSError(28, "No space left on device", "/data/x")


def do_die(_context):
    os.kill(os.getpid(), signal.SIGKILL)


def do_exit(_context):
    os._exit(3)


def do_wait(context, pid_file):
    Path(pid_file).write_text(str(os.getpid()))
    context.report("waiting", context.identity.attempt, 0, "attempts")
    while True:
        context.check_cancelled()
        time.sleep(0.02)


def do_ignore_cancel(_context, pid_file):
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)


def do_finish_when(context, flag_file):
    context.report("waiting", context.identity.attempt, 0, "attempts")
    while not Path(flag_file).exists():
        context.check_cancelled()
        time.sleep(0.02)
    return do_succeed(context, str(context.identity.attempt))


class FakeSettings(ServiceSettings):
    """The common settings alone."""


IMPORT_FILES = JobKind(
    name="ImportFiles",
    request=exporter_service_pb2.ImportFilesRequest,
    function="fake_service:work",
    settings=FakeSettings,
    concurrency=2,
)


class Servicer(exporter_service_pb2_grpc.ExporterServiceServicer):
    def __init__(self, jobs):
        self._jobs = jobs

    async def ImportFiles(self, request, context):
        problems = [] if request.uris else [("uris", "is required")]
        return exporter_service_pb2.ImportFilesResponse(job=await self._jobs.start(IMPORT_FILES, request, problems))

    async def DescribeSource(self, request, context):
        raise RuntimeError("secret-detail")


def add_servicer(surroundings, server):
    servicer = Servicer(surroundings.jobs)
    exporter_service_pb2_grpc.add_ExporterServiceServicer_to_server(servicer, server)
    return servicer


SERVICE = ServiceDefinition(
    name="fake",
    grpc_service="gpt2.exporter.v1.ExporterService",
    settings=FakeSettings,
    kinds=[IMPORT_FILES],
    add_servicer=add_servicer,
)

if __name__ == "__main__":
    # The child imports `fake_service`, so that the definition must come from there too, not from `__main__`.
    sys.path.insert(0, str(Path(__file__).parent))
    import fake_service

    main(fake_service.SERVICE)
