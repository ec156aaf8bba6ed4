"""Checks what was promised of events and artifacts, from the event log, the job stores and the folders.

Each change of state of each job is in the log, in order, as one event however often it was delivered; each stage was
started once; nothing unfinished lies beside the artifacts.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from kafka import KafkaConsumer

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts.claim import CLAIM_FILE

TOPIC = "gpt2.stage-events.v1"
Job = job_pb2.Job
Change = events_pb2.JobStateChanged
Delivery = tuple[tuple[str, str], Change]
"""Source and id of an event, and its content."""


def history(address: str, run_id: str, jobs: Sequence[Job]) -> list[Delivery]:
    """A run's changes in the order of the log, up to the last that the stores know of."""
    last = {(job.job_id, job.revision) for job in jobs}
    consumer = KafkaConsumer(TOPIC, bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
    found = []
    deadline = time.monotonic() + 60
    while last:
        assert time.monotonic() < deadline, f"lost: {last}"
        for batch in consumer.poll(timeout_ms=500).values():
            for record in batch:
                headers = {name: value.decode() for name, value in record.headers}
                if record.key != run_id.encode() or headers["ce_type"] != Change.DESCRIPTOR.full_name:
                    continue
                change = Change.FromString(record.value)
                found.append(((headers["ce_source"], headers["ce_id"]), change))
                last.discard((change.job.job_id, change.job.revision))
    consumer.close()
    return found


def check_history(events: Sequence[Delivery], jobs: Sequence[Job]) -> None:
    """Proves the promises."""
    first_deliveries = dict(reversed(events))
    for job in jobs:
        seen = [change for _, change in events if change.job.job_id == job.job_id]
        once = [change for change in first_deliveries.values() if change.job.job_id == job.job_id]
        chain = sorted(once, key=lambda change: change.job.revision)
        states = [Job.STATE_UNSPECIFIED, *(change.job.state for change in chain)]
        assert [change.previous_state for change in chain] == states[:-1], "a change was lost or published twice"
        assert states[-1] == job.state, f"{job.job_id} is not in the state of its last event"
        revisions = list(dict.fromkeys(change.job.revision for change in seen))
        assert revisions == sorted(revisions), "events of a job came out of order"
        assert chain[0].job.create_time == job.create_time, "the stage was started twice"


def stray_files(folder: Path) -> list[Path]:
    """What is left of unfinished work: nothing that is to stay has a name that begins with a dot.

    But the work folder of a job that has failed, with the claim of its last attempt: it may be continued.
    """
    return [path for path in folder.rglob(".*") if path.name != ".work" or has_work(path)]


def has_work(folder: Path) -> bool:
    return any(path.name != CLAIM_FILE for path in folder.glob("*"))
