"""The process in a TrainJob's pod: `python -m gpt2_trainer.trainjobs.pod`.

The task is in a variable; messages go to the pod's log, on lines with a prefix, between those of libraries. An error is
in the termination message, too, which the pod's status shows when nobody can read the log. Exit status 1 says that the
job has failed, and another pod would too; 75, that another pod can resume it.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from gpt2_common.child_process import ServiceConnection
from gpt2_common.jobs.context import Interruption
from gpt2_common.jobs.messages import encode_message
from gpt2_common.jobs.outcome import Failed, Succeeded
from gpt2_common.jobs.worker import run_task
from gpt2_trainer.trainjobs.manifest import TASK_VARIABLE
from gpt2_trainer.trainjobs.pod_status import termination_message

LOG_PREFIX = "gpt2-trainer: "
EXIT_FAILED = 1
EXIT_SUSPENDED = 75
_TERMINATION_LOG = Path("/dev/termination-log")
"""A file of the kubelet's; there is none outside a cluster."""


def main() -> int:
    """Does the work. Returns the exit status."""
    interruption = Interruption()
    # A drained node stops its pods, too: the work is saved, as when the service stops.
    signal.signal(signal.SIGTERM, lambda *_: interruption.suspend())
    service = ServiceConnection(sys.stdout, LOG_PREFIX)
    task = json.loads(os.environ[TASK_VARIABLE])
    outcome = run_task(task, lambda report: service.send(encode_message(report)), interruption)
    service.send(encode_message(outcome))
    if isinstance(outcome, Succeeded):
        return 0
    if isinstance(outcome, Failed) and _TERMINATION_LOG.exists():
        with suppress(OSError):
            _TERMINATION_LOG.write_text(termination_message(outcome))
    return EXIT_FAILED if isinstance(outcome, Failed) else EXIT_SUSPENDED


if __name__ == "__main__":
    sys.exit(main())
