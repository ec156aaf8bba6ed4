"""The child process of one attempt: `python -m gpt2_common.jobs.worker`.

Lines of JSON go both ways. The first line on standard input says what to do; `keep`, `cancel` and `suspend` may follow.
Its end means that the service is gone, and the child goes too, as it does when nothing has come for the length of a
lease: another replica may then have begun the same work. Progress and the result go to what was standard output; prints
of libraries are sent to standard error, so that they cannot break into it.
"""

import base64
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

from google.protobuf import json_format
from google.rpc import status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import JobInterrupted, JobSuspended
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_common.jobs.definition import import_function, import_name
from gpt2_common.logs import configure_logs, job_log_fields
from gpt2_common.settings import load_settings
from gpt2_common.status import is_expected, status_of

_log = logging.getLogger(__name__)
EXIT_ORPHANED = 75
_SET_DEATH_SIGNAL = 1


class ServiceLine:
    """The line to the service: one JSON object a line, from any thread.

    Args:
        stream: Where it goes.
        mark: What each line begins with, where other lines are between them.
    """

    def __init__(self, stream: IO[str], mark: str = "") -> None:
        self._stream = stream
        self._mark = mark
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message."""
        with self._lock:
            self._stream.write(f"{self._mark}{json.dumps(message)}\n")
            self._stream.flush()

    def send_progress(self, progress: job_pb2.Progress) -> None:
        """Sends progress."""
        self.send({"progress": _encode(progress)})

    def send_warning(self, text: str) -> None:
        """Sends a warning."""
        self.send({"warning": text})


def main() -> int:
    """Runs one attempt; its exit status is 0 whenever a result was sent."""
    line = ServiceLine(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    _die_with_parent()
    # Ctrl-C in a terminal reaches the whole group; the service decides what becomes of its jobs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    interruption = Interruption()
    _keep(job["lease_seconds"])
    threading.Thread(target=_listen, args=(sys.stdin, interruption, job["lease_seconds"]), daemon=True).start()
    line.send(run_task(job, line, interruption))
    return 0


def run_task(task: Mapping[str, Any], line: ServiceLine, interruption: Interruption) -> dict[str, Any]:
    """Does the work of one attempt in this process.

    Args:
        task: What `describe_task` has said; the service's settings come from the environment.
        line: Takes progress and warnings.
        interruption: Tells when to stop.

    Returns:
        The last message to the service: how the work has ended.
    """
    settings = load_settings(import_name(task["settings"]))
    configure_logs(task["service"], settings.log_level)
    identity = JobIdentity(
        service=task["service"],
        job_id=task["job_id"],
        run_id=task["run_id"],
        request_digest=task["request_digest"],
        attempt=task["attempt"],
    )
    context = JobContext(identity, settings, line.send_progress, interruption, line.send_warning)
    request = import_name(task["request_type"]).FromString(base64.b64decode(task["request"]))
    with job_log_fields(identity.job_id, identity.run_id):
        return _result(task["function"], request, context)


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when the service is gone: the next attempt must be alone in its folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _result(function: str, request: object, context: JobContext[Any]) -> dict[str, Any]:
    try:
        work = import_function(function)
        # What is imported stays. Python would look through it again and again, 0.1 s while a vocabulary is read.
        gc.freeze()
        outputs = work(request, context)
        context.remove_work()
    except JobInterrupted as error:
        return {"interrupted": "suspended" if isinstance(error, JobSuspended) else "cancelled"}
    except Exception as error:  # noqa: BLE001 - whatever it is, the job ends FAILED and says so
        if is_expected(error):
            _log.error("job failed: %s", error)
        else:
            _log.exception("job failed")
        # Of a full disk they would keep the little that is left.
        context.remove_half_written()
        return {"error": _encode(status_of(error))}
    return {"outputs": [json_format.MessageToDict(output) for output in outputs]}


def _keep(lease_seconds: float) -> None:
    """Puts off the end. The kernel's alarm comes even where the work never lets another thread run."""
    signal.setitimer(signal.ITIMER_REAL, lease_seconds)


def _listen(stream: IO[str], interruption: Interruption, lease_seconds: float) -> None:
    for command in stream:
        _keep(lease_seconds)
        if command.strip() == "cancel":
            interruption.cancel()
        elif command.strip() == "suspend":
            interruption.suspend()
    # The service is gone. Nobody would hear of the result, and another attempt would work in the same folder.
    os._exit(EXIT_ORPHANED)


def _encode(message: job_pb2.Progress | status_pb2.Status) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


if __name__ == "__main__":
    sys.exit(main())
