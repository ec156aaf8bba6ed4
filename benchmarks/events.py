"""From the commit of a change of state to its event in another service, beside bare Kafka; and jobs a second.

    .venv/bin/python benchmarks/events.py

Ours: a job is written to the store with its event, the relay takes it from the outbox to Kafka, and a consumer in
another process has it in its handler. Bare: kafka-python's producer and consumer, in two processes, with the same bytes
and the same settings. Both at the same rates over the same Apache Kafka, in turns. Needs Java 17 and Maven.

Then a service whose jobs do nothing is given many of them: start call, child process, events.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from kafka import KafkaConsumer, KafkaProducer

from gpt2.events.v1 import events_pb2
from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import open_database
from gpt2_common.events.consumer import EventConsumer, Subscription
from gpt2_common.events.relay import OutboxRelay
from gpt2_common.events.topics import ensure_topic
from gpt2_common.jobs.creation import create_job
from gpt2_common.jobs.rows import job_event
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import Lease, LeaseHolder
from gpt2_contracts.events import CloudEvent
from gpt2_orchestration.stack.definitions import define_stack
from gpt2_orchestration.stack.ports import choose_ports
from gpt2_orchestration.stack.running import supervised
from gpt2_orchestration.stack.settings import StackFolder, StackSettings

sys.path.append(str(Path(__file__).parents[1] / "services" / "common" / "tests"))

RATES = {10: 150, 200: 3000}
"""Events a second, and how many."""
ROUNDS = 2
JOBS = 40
_WARM_UP = 20
_LEASE_SECONDS = 30.0

Sender = Callable[[int], tuple[str, float]]
"""Sends an event. Returns the id of its job, and when the event was committed; seconds since 1970."""


class Receiver:
    """A consumer in another process that notes when the events of jobs come.

    Args:
        how: `ours`, `bare`, or `ends`, which notes when jobs succeed.
        address: Broker.
        topic: What to consume.
    """

    def __init__(self, how: str, address: str, topic: str) -> None:
        command = [sys.executable, __file__, "--receive", how, address, topic]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.times: dict[str, float] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, ids: Collection[str]) -> None:
        """Waits until the events of these jobs have come."""
        deadline = time.monotonic() + 60
        while not self.times.keys() >= set(ids):
            if time.monotonic() > deadline:
                raise SystemExit(f"{len(set(ids) - self.times.keys())} events did not come")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            identifier, when = line.split()
            self.times[identifier] = float(when)


def receive(how: str, address: str, topic: str) -> None:
    """Prints the job of each event and when it came, until it is killed."""

    def note(identifier: str) -> None:
        print(identifier, time.time(), flush=True)

    if how == "ours":
        subscription = Subscription(
            bootstrap_servers=address,
            topic=topic,
            group="benchmark",
            instance_id="",
            max_poll_seconds=300,
            session_seconds=15,
            metadata_seconds=15,
        )
        EventConsumer(subscription, lambda event: note(event.subject)).start()
        threading.Event().wait()
    for record in KafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="earliest", group_id=None):
        event = CloudEvent.from_record(record.headers, record.value)
        if how == "bare" or events_pb2.JobStateChanged.FromString(event.data).job.state == job_pb2.Job.STATE_SUCCEEDED:
            note(event.subject)


def at_rate(rate: int, count: int, act: Callable[[int], None]) -> None:
    """Acts so many times, each when it is due, however long those before took."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        act(number)


def a_job(number: int) -> exporter_service_pb2.ImportFilesRequest:
    """A request as small as they are in practice; each run is its own, as runs of many users are."""
    job_id = f"run-{time.time_ns()}-{number}/import-files"
    return exporter_service_pb2.ImportFilesRequest(uris=["/data/text"], job=job_pb2.JobOptions(job_id=job_id))


@contextmanager
def our_sender(address: str, topic: str, folder: Path) -> Iterator[Sender]:
    """Commits a new job with its event. Gives a function that returns the job's id and the time."""
    source = "/gpt2/benchmark"
    holder = LeaseHolder.this_process(_LEASE_SECONDS)
    with open_database(f"sqlite:///{folder / 'jobs.db'}") as engine:
        store = JobStore(engine, "benchmark", 1_000_000, holder)
        relay = OutboxRelay(engine, source, address, topic, Lease(engine, "relay", holder))
        relay.start()

        def send(number: int) -> tuple[str, float]:
            job = create_job(store, "ImportFiles", a_job(number))
            committed = time.time()
            relay.wake()
            return job.job_id, committed

        yield send
        relay.stop(10)


@contextmanager
def bare_sender(address: str, topic: str) -> Iterator[Sender]:
    """Sends the same bytes by kafka-python alone. Gives a function that returns the job's id and the time."""
    producer = KafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True, linger_ms=0)

    def send(number: int) -> tuple[str, float]:
        request = a_job(number)
        job = job_pb2.Job(job_id=request.job.job_id, run_id=request.job.job_id, service="benchmark", kind="ImportFiles")
        event = job_event("benchmark", job, events_pb2.JobStateChanged(job=job))
        sent = time.time()
        producer.send(topic, key=event.key.encode(), value=event.data, headers=event.headers())
        return job.job_id, sent

    yield send
    producer.close()


def latencies(send: Sender, receiver: Receiver, rate: int, count: int) -> list[float]:
    """Milliseconds from commit to arrival of events at a rate."""
    sent: dict[str, float] = {}
    at_rate(rate, count, lambda number: sent.update([send(number)]))
    receiver.wait_for(sent)
    return [(receiver.times[job_id] - when) * 1000 for job_id, when in sent.items()]


def compare_latencies(address: str, folder: Path) -> None:
    """Prints the table of latencies, each contender's turns taken together."""
    for how in ("ours", "bare"):
        ensure_topic(address, how)
    receivers = {how: Receiver(how, address, how) for how in ("ours", "bare")}
    found: dict[tuple[str, int], list[float]] = {}
    with our_sender(address, "ours", folder) as ours, bare_sender(address, "bare") as bare:
        senders = {"ours": ours, "bare": bare}
        for how, send in senders.items():
            latencies(send, receivers[how], 10, _WARM_UP)
        for _ in range(ROUNDS):
            for rate, count in RATES.items():
                for how, send in senders.items():
                    found.setdefault((how, rate), []).extend(latencies(send, receivers[how], rate, count))
    for receiver in receivers.values():
        receiver.stop()
    print("| events/s | | events | p50 ms | p99 ms | most ms | p99 to bare |\n|---:|---|---:|---:|---:|---:|---:|")
    for rate in RATES:
        bare_p99 = quantiles(found["bare", rate], n=100)[98]
        for how in ("ours", "bare"):
            values = found[how, rate]
            p99 = quantiles(values, n=100)[98]
            print(
                f"| {rate} | {how} | {len(values)} | {median(values):.1f} | {p99:.1f} | {max(values):.1f} "
                f"| {p99 / bare_p99:.2f} |",
                flush=True,
            )


def jobs_a_second(address: str, folder: Path) -> None:
    """Prints how many jobs that do nothing a service brings to their end, and where their time goes."""
    from conftest import FakeService

    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "gpt2_common.jobs.worker"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    start_up = time.monotonic() - began
    service = FakeService(folder, GPT2_KAFKA_BOOTSTRAP_SERVERS=address).start().wait_until_ready()
    receiver = Receiver("ends", address, "gpt2.stage-events.v1")
    try:
        service.run("nothing")
        calls = []
        began = time.monotonic()
        for _ in range(JOBS):
            called = time.monotonic()
            calls.append((service.submit("nothing").job_id, time.monotonic() - called))
        jobs = [service.watch(job_id)[-1] for job_id, _ in calls]
        seconds = time.monotonic() - began
        receiver.wait_for([job.job_id for job in jobs])
    finally:
        service.kill()
        receiver.stop()
    alone = [service_times(job) for job in jobs]
    print(f"\n{JOBS} jobs that do nothing, two at once: {JOBS / seconds:.2f} jobs/s")
    print("| of a job, median | ms |\n|---|---:|")
    print(f"| start call, answered | {median(took for _, took in calls) * 1000:.1f} |")
    print(f"| from RUNNING to its end | {median(run for _, run in alone) * 1000:.1f} |")
    print(f"| of that: Python and imports of its process, measured alone | {start_up * 1000:.1f} |")
    late = median(receiver.times[job.job_id] - ended for job, (ended, _) in zip(jobs, alone, strict=True))
    print(f"| from its end to the event in another process | {late * 1000:.1f} |")


def service_times(job: job_pb2.Job) -> tuple[float, float]:
    """When a job ended, and how long it ran; seconds."""
    ended = job.end_time.ToNanoseconds() / 1e9
    return ended, ended - job.start_time.ToNanoseconds() / 1e9


def main() -> None:
    """Runs all, or one receiver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receive", nargs=3, metavar=("HOW", "ADDRESS", "TOPIC"), help="for the script's own use")
    arguments = parser.parse_args()
    if arguments.receive:
        receive(*arguments.receive)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = StackFolder.create(Path(temporary))
        settings = StackSettings(folder=folder.root, kafka=True)
        definitions = define_stack(settings, folder, choose_ports(settings.ports))
        kafka = [definition for definition in definitions if definition.name == "kafka"]
        with supervised(kafka, folder) as supervisor:
            address = supervisor.wait_ready()["kafka"]
            compare_latencies(address, folder.root)
            jobs_a_second(address, folder.root)


if __name__ == "__main__":
    main()
