"""The child process of one attempt: `python -m gpt2_common.jobs.worker`."""

import base64
import gc
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gpt2_common.child_process import CANCEL, SUSPEND, ServiceConnection
from gpt2_common.errors import JobCancelled, JobSuspended
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_common.jobs.definition import import_function, import_name
from gpt2_common.jobs.messages import JobWarning, Report, encode_message
from gpt2_common.jobs.outcome import Cancelled, Failed, Outcome, Succeeded, Suspended
from gpt2_common.logs import configure_logs, job_log_fields
from gpt2_common.settings import load_settings
from gpt2_common.status import is_expected, status_of

_log = logging.getLogger(__name__)


def main() -> int:
    """Runs one attempt; its exit status is 0 whenever an outcome was sent."""
    service = ServiceConnection.open()
    _, task = service.receive()
    interruption = Interruption()

    def handle(command: str, _content: object) -> None:
        if command == CANCEL:
            interruption.cancel()
        elif command == SUSPEND:
            interruption.suspend()

    service.listen(handle, task["lease_seconds"])
    outcome = run_task(task, lambda report: service.send(encode_message(report)), interruption)
    service.send(encode_message(outcome))
    return 0


def run_task(
    task: Mapping[str, Any], send: Callable[[Report], None], interruption: Interruption, *, is_first: bool = True
) -> Outcome:
    """Does the work of one attempt in this process.

    Args:
        task: As `encode_task` returns it; the service's settings come from the environment.
        send: Takes progress and warnings.
        interruption: Whether to stop.
        is_first: Of several processes that do it together, whether this one has the job's folders. The work has the
            others join it.
    """
    settings = load_settings(import_name(task["settings"]))
    configure_logs(task["service"], settings.log_level)
    identity = JobIdentity(
        service=task["service"],
        job_id=task["job_id"],
        run_id=task["run_id"],
        request_digest=task["request_digest"],
        attempt=task["attempt"],
        actor=task.get("actor", ""),
    )
    context = JobContext(identity, settings, send, interruption, lambda text: send(JobWarning(text)))
    request = import_name(task["request_type"]).FromString(base64.b64decode(task["request"]))
    with job_log_fields(identity.job_id, identity.run_id):
        return _run(task["function"], request, context, is_first)


def _run(function: str, request: object, context: JobContext[Any], is_first: bool) -> Outcome:
    try:
        if is_first:
            context.claim()
        work = import_function(function)
        # What is imported stays. Python would look through it again and again, 0.1 s while a vocabulary is read.
        gc.freeze()
        outputs = work(request, context)
        if is_first:
            context.remove_work()
    except JobCancelled:
        return Cancelled()
    except JobSuspended:
        return Suspended()
    except Exception as error:  # noqa: BLE001 - whatever it is, the job ends FAILED and says so
        if context.is_superseded():
            # Whatever went wrong, such as files that have gone, means nothing to the job, which is the later attempt's.
            _log.warning("a later attempt of this job has begun: this one ends (%s)", error)
            return Suspended()
        if is_expected(error):
            _log.error("job failed: %s", error)
        else:
            _log.exception("job failed")
        # Of a full disk they would keep the little that is left.
        if is_first:
            context.remove_partial_files()
        return Failed(status_of(error))
    return Succeeded(outputs)


if __name__ == "__main__":
    sys.exit(main())
