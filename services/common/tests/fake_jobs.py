"""What the jobs of the fake service do: nothing, or fail in every way.

Apart from the service itself, as in the real ones, so that a job's process need not import a server.
"""

import logging
import os
import signal
import tempfile
import time
from pathlib import Path

from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import output
from gpt2_common.settings import ServiceSettings


class FakeSettings(ServiceSettings):
    """The common settings alone."""


def work(request, context):
    action, *arguments = request.uris
    return globals()[f"do_{action}"](context, *arguments)


def work_of_uri(request, context):
    return globals()[f"do_{request.uri}"](context)


def do_succeed(context, text="hello"):
    context.report("writing", 0, 1, "files")
    with context.create("corpus", "corpus") as writer:
        (writer.folder / "text.txt").write_text(text)
        context.report("writing", 1, 1, "files")
        print("a library prints to standard output")
        return [output("corpus", writer.commit({"documents": 1}))]


def do_nothing(_context):
    return []


def do_warn(context, end, *texts):
    """Ends in one of the other ways, after warnings."""
    for text in texts:
        context.warn(text)
    return globals()[f"do_{end}"](context)


def do_fail(_context):
    raise FailedPrecondition("the collection is empty: fill it")


def do_quote(context, end):
    """Quotes bytes that are not UTF-8 wherever a job can."""
    odd = os.fsdecode(b"\xf6\xff") + "\ud83d"
    logging.getLogger(__name__).warning("a name: %s", odd)
    context.report(odd, 1, 1, odd, {odd: 1.0})
    if end == "fail":
        raise FailedPrecondition(f"no column {odd}", column=odd)
    with context.create("corpus", "corpus") as writer:
        (writer.folder / "text.txt").write_text("x")
        return [output("corpus", writer.commit({"documents": 1}, {"source": odd}))]


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


def do_litter(context, path_file, end, *arguments):
    """Ends in one of the other ways, and leaves a file where libraries put theirs."""
    (context.work / "finished-part").touch()
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    Path(path_file).write_text(path)
    return globals()[f"do_{end}"](context, *arguments)


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
