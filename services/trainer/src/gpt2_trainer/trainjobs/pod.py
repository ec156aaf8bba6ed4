"""The process in a TrainJob's pod, one on each node: `python -m gpt2_trainer.trainjobs.pod`.

The task is in a variable; the first node's messages go to its log, on lines with a prefix, between those of libraries.
An error is in the termination message, too, which the pod's status shows when nobody can read the log. Exit status 1
says that the job has failed, and another pod would too; 75, that another pod can resume it.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from gpt2_common.child_process import ServiceConnection
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import Interruption
from gpt2_common.jobs.messages import Report, encode_message
from gpt2_common.jobs.outcome import Failed, Outcome, Succeeded
from gpt2_common.jobs.worker import run_task
from gpt2_common.status import status_of
from gpt2_trainer.training.rank import Rank
from gpt2_trainer.trainjobs.manifest import TASK_VARIABLE
from gpt2_trainer.trainjobs.pod_status import EXIT_FAILED, termination_message

LOG_PREFIX = "gpt2-trainer: "
EXIT_SUSPENDED = 75
_TERMINATION_LOG = Path("/dev/termination-log")
"""A file of the kubelet's; there is none outside a cluster."""


def main() -> int:
    """Does the work. Returns the exit status."""
    interruption = Interruption()
    # A drained node stops its pods, too: the work is saved, as when the service stops.
    signal.signal(signal.SIGTERM, lambda *_: interruption.suspend())
    service = ServiceConnection(sys.stdout, LOG_PREFIX)
    outcome = _outcome(service, interruption)
    service.send(encode_message(outcome))
    if isinstance(outcome, Succeeded):
        return 0
    if isinstance(outcome, Failed) and _TERMINATION_LOG.exists():
        with suppress(OSError):
            _TERMINATION_LOG.write_text(termination_message(outcome))
    return EXIT_FAILED if isinstance(outcome, Failed) else EXIT_SUSPENDED


def _outcome(service: ServiceConnection, interruption: Interruption) -> Outcome:
    try:
        rank = Rank.of(os.environ)
    except FailedPrecondition as error:
        return Failed(status_of(error))

    def send(report: Report) -> None:
        if rank.is_first:
            service.send(encode_message(report))

    return run_task(json.loads(os.environ[TASK_VARIABLE]), send, interruption, is_first=rank.is_first)


if __name__ == "__main__":
    if status := main():
        # JAX would wait at exit for other nodes, which may have ended or wait for this one.
        os._exit(status)
