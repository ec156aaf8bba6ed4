"""The process in a TrainJob's pod: `python -m gpt2_trainer.trainjobs.pod`.

What to do is in a variable; progress and result go to the pod's log, each on a line with a mark, between what libraries
print. The exit status tells the cluster what to make of the pod: 1, that the job has failed and another pod would too;
75, that it was told to stop, and another pod can go on from what it has saved.
"""

import json
import os
import signal
import sys

from gpt2_common.jobs.context import Interruption
from gpt2_common.jobs.worker import ServiceLine, run_task
from gpt2_trainer.trainjobs.manifest import TASK_VARIABLE

MARK = "gpt2-trainer: "
EXIT_FAILED = 1
EXIT_STOPPED = 75


def main() -> int:
    """Does the work. Returns the exit status."""
    interruption = Interruption()
    # A pod is told to stop when its node is drained, too: what is done is saved, as when the service stops.
    signal.signal(signal.SIGTERM, lambda *_: interruption.suspend())
    line = ServiceLine(sys.stdout, MARK)
    result = run_task(json.loads(os.environ[TASK_VARIABLE]), line, interruption)
    line.send(result)
    if "interrupted" in result:
        return EXIT_STOPPED
    return EXIT_FAILED if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
