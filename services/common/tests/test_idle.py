"""What an idle service does: next to nothing. Wake-ups are counted, as load changes them little."""

import time
from pathlib import Path

import psutil
import pytest

from gpt2.jobs.v1 import job_pb2

from .brokers import EmbeddedBroker

pytestmark = pytest.mark.process

SECONDS = 6
# On a loaded machine it still connects in the first, and threads that wait for a processor count as woken.
INTERVALS = 6
# It is woken 6 to 8 times; a further loop that looks ten times a second adds 10. Before its loops waited, it was 17.
MAX_WAKE_UPS_PER_SECOND = 12
# A loop that never sleeps is never woken, but takes half a core and more, and an idle service 0.3 %.
MAX_CPU = 0.1


@pytest.fixture
def broker(tmp_path):
    started = EmbeddedBroker(tmp_path).start()
    yield started
    started.stop()


def wake_ups(process: psutil.Process) -> int:
    """How often the threads that run Python have waited for something, and are or will be woken."""
    total = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        if (task / "comm").read_text().startswith("python"):
            status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            total += int(status["voluntary_ctxt_switches"])
    return total


def test_an_idle_service_is_woken_by_events_and_seldom_looks_for_them(make_service, broker):
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address).start().wait_until_ready()
    # After a job all is connected: producer, consumer, database.
    assert service.run("succeed").state == job_pb2.Job.STATE_SUCCEEDED
    process = psutil.Process(service.process.pid)
    rates = []
    for _ in range(INTERVALS):
        woken, used = wake_ups(process), sum(process.cpu_times()[:2])
        time.sleep(SECONDS)
        rates.append(((wake_ups(process) - woken) / SECONDS, (sum(process.cpu_times()[:2]) - used) / SECONDS))
        if rates[-1][0] < MAX_WAKE_UPS_PER_SECOND and rates[-1][1] < MAX_CPU:
            return
    raise AssertionError(f"wake-ups a second and share of a core, by interval: {rates}")
