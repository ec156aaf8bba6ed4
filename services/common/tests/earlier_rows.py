"""Rows of the job store as they were before there were tables of runs: for tests of upgrades and of lists."""

from typing import Any

from gpt2.jobs.v1 import job_pb2


def earlier_row(job: job_pb2.Job) -> dict[str, Any]:
    """A job's row, without the columns that came later."""
    return {
        "service": job.service,
        "job_id": job.job_id,
        "run_id": job.run_id,
        "kind": job.kind,
        "state": job.state,
        "revision": job.revision,
        "job": job.SerializeToString(),
        "request": b"request",
    }
