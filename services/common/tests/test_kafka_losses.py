"""Kafka is a means: whatever becomes of the topic, its log or the broker in the middle of runs, all of them end."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from free_ports import free_port
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewPartitions
from kafka.errors import KafkaError
from kafka.partitioner import DefaultPartitioner
from kafka.structs import OffsetAndMetadata

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.events.membership import CountingAssignor, leave_group
from gpt2_common.events.watch import ConsumerWatch

from .brokers import TOPIC, ApacheKafka, require_java
from .conftest import FakeService

pytestmark = pytest.mark.process

Job = job_pb2.Job
SUCCEED = "succeed"


class FakeTokenizer(FakeService):
    """The service that takes the second stage of each run here."""

    program = "fake_tokenizer.py"


class Pair:
    """Two services that hand runs to one another, and their broker."""

    def __init__(self, kafka: ApacheKafka, first: FakeService, second: FakeService) -> None:
        self.kafka = kafka
        self.first = first
        self.second = second

    def start(self, *run_ids: str) -> None:
        """Starts runs of three stages: of the first service, the second, and the first again."""
        for run_id in run_ids:
            plan = job_pb2.RunPlan()
            plan.stages.add(start="ImportTokenizer", name="second").request.update({"uri": SUCCEED})
            plan.stages.add(start="ImportFiles", name="third").request.update({"uris": [SUCCEED]})
            self.first.submit(SUCCEED, run_id=run_id, job_id=f"{run_id}/first", plan=plan)

    def finish(self, *run_ids: str) -> None:
        """Waits until runs have ended well."""
        for run_id in run_ids:
            wait_until(lambda run_id=run_id: self.has_succeeded(self.first, f"{run_id}/third"), run_id)

    def has_succeeded(self, service: FakeService, job_id: str) -> bool:
        """Whether a job is there, and has succeeded."""
        request = jobs_service_pb2.ListJobsRequest(run_id=job_id.partition("/")[0], states=[Job.STATE_SUCCEEDED])
        return any(job.job_id == job_id for job in service.jobs.ListJobs(request, timeout=10).jobs)

    def publish_to_nobody(self, *run_ids: str) -> None:
        """Starts runs whose second service is dead. Returns when Kafka has all events of their first stages."""
        self.second.kill()
        self.start(*run_ids)
        missing = {(f"{run_id}/first", Job.STATE_SUCCEEDED) for run_id in run_ids}
        consumer = KafkaConsumer(
            TOPIC, bootstrap_servers=self.kafka.address, auto_offset_reset="earliest", group_id=None
        )
        with closing(consumer):

            def all_are_there() -> bool:
                for records in consumer.poll(timeout_ms=200).values():
                    jobs = [events_pb2.JobStateChanged.FromString(record.value).job for record in records]
                    missing.difference_update((job.job_id, job.state) for job in jobs)
                return not missing

            wait_until(all_are_there, f"{missing} in Kafka")

    def ends(self) -> dict[TopicPartition, int]:
        """Where the log of each partition ends."""
        with closing(KafkaConsumer(bootstrap_servers=self.kafka.address, group_id=None)) as consumer:
            partitions = consumer.partitions_for_topic(TOPIC) or set()
            return dict(consumer.end_offsets([TopicPartition(TOPIC, number) for number in partitions]))

    def members(self, group: str) -> list[list[TopicPartition]]:
        """The partitions that each member of a group has; none of a member while the group is rebalanced."""
        with self.administration() as admin:
            [found] = admin.describe_consumer_groups([group])
        # Kafka sends no assignment while members join, and kafka-python decodes none then.
        return [
            [] if isinstance(member.member_assignment, bytes) else member.member_assignment.partitions()
            for member in found.members
        ]

    def events(self, service: FakeService) -> jobs_service_pb2.EventState:
        """What a service says of its events."""
        return service.jobs.DescribeService(jobs_service_pb2.DescribeServiceRequest(), timeout=10).events

    def cut_the_log(self) -> None:
        """Deletes all events that Kafka has."""
        with self.administration() as admin:
            admin.delete_records(self.ends())

    @contextmanager
    def administration(self) -> Iterator[KafkaAdminClient]:
        with closing(KafkaAdminClient(bootstrap_servers=self.kafka.address)) as admin:
            yield admin


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    require_java()
    kafka = ApacheKafka(tmp_path_factory.mktemp("kafka"), free_port()).start()
    settings = {
        "GPT2_KAFKA_BOOTSTRAP_SERVERS": kafka.address,
        "GPT2_KAFKA_SESSION_SECONDS": "6",
        "GPT2_KAFKA_METADATA_SECONDS": "1",
        "GPT2_RECONCILE_SECONDS": "2",
    }
    made = [FakeService(tmp_path_factory.mktemp("first")), FakeTokenizer(tmp_path_factory.mktemp("second"))]
    addresses = zip(("GPT2_EXPORTER_ADDRESS", "GPT2_TOKENIZER_ADDRESS"), made, strict=True)
    settings |= {name: f"127.0.0.1:{service.port}" for name, service in addresses}
    for service in made:
        service.settings.update(settings)
        service.start()
    for service in made:
        service.wait_until_ready()
    running = Pair(kafka, *made)
    running.start("undisturbed")
    running.finish("undisturbed")
    yield running
    for service in made:
        service.kill()
    kafka.stop()


def test_a_topic_that_is_deleted_is_made_again_and_its_lost_events_are_published_again(pair):
    pair.publish_to_nobody("lost-1", "lost-2")
    with pair.administration() as admin:
        admin.delete_topics([TOPIC])
    wait_until(lambda: pair.ends() or not any(pair.members("gpt2.fake")), "new assignment")
    # They rejoin as the static members that they were, and are given what the group had then: nothing.
    pair.first.kill()
    for service in (pair.first, pair.second):
        service.start().wait_until_ready()
    pair.start("after-1", "after-2")
    pair.finish("after-1", "after-2", "lost-1", "lost-2")


def test_partitions_that_are_added_are_read_also_when_nobody_leads_the_group(pair):
    """After a restart a static member follows, though it is alone: no client of its group watches the topic then."""
    replica = FakeTokenizer(pair.second.folder, **{**pair.second.settings, "GPT2_INSTANCE_ID": "replica"})
    try:
        check_partitions_that_are_added(pair, replica)
    finally:
        replica.kill()  # it would take the events that the tests below publish to nobody


def check_partitions_that_are_added(pair: Pair, replica: FakeService) -> None:
    """Adds partitions to the topic that a service and its replica read, and starts runs whose events lie in them."""
    replica.start().wait_until_ready()
    wait_until(lambda: len(pair.members("gpt2.tokenizer")) == 2, "second member")
    for service in (pair.first, pair.second, replica):
        service.kill()
        service.start().wait_until_ready()
    pair.start("before")
    pair.finish("before")
    count = len(pair.ends()) + 2
    with pair.administration() as admin:
        admin.create_partitions({TOPIC: NewPartitions(count)})
    partitioner = DefaultPartitioner()
    everything = list(range(count))
    added = [
        run_id
        for run_id in (f"added-{number}" for number in range(100))
        if partitioner(run_id.encode(), everything, everything) >= count - 2
    ]
    wait_until(lambda: len(pair.ends()) == count, "partitions")
    pair.start(*added[:4])
    pair.finish(*added[:4])


def test_a_log_that_is_cut_below_the_offsets_loses_no_run(pair):
    pair.publish_to_nobody("cut-1", "cut-2", "cut-3")
    pair.cut_the_log()
    wait_until(lambda: pair.events(pair.first).waiting_runs == 3, "runs that wait")
    request = jobs_service_pb2.ContinueRunRequest(run_id="cut-1")
    wait_until(lambda: pair.first.jobs.ContinueRun(request, timeout=10).published, "event published again")
    pair.second.start().wait_until_ready()
    pair.start("after-cut")
    pair.finish("cut-1", "cut-2", "cut-3", "after-cut")
    wait_until(lambda: pair.events(pair.first).waiting_runs == 0, "end of the waiting")
    assert not pair.events(pair.first).problem


def test_services_find_out_from_each_other_what_no_event_tells_any_more(pair):
    """The first service never reads that its run was taken over, nor the second that it was taken back."""
    pair.publish_to_nobody("untold")
    pair.first.kill()
    pair.second.start().wait_until_ready()
    wait_until(lambda: pair.has_succeeded(pair.second, "untold/second"), "second stage")
    wait_until(lambda: pair.events(pair.second).outbox_events == 0, "empty outbox")
    pair.cut_the_log()
    pair.first.start().wait_until_ready()
    pair.finish("untold")
    for service in (pair.first, pair.second):
        wait_until(lambda service=service: pair.events(service).waiting_runs == 0, "end of the waiting")


def test_a_consumer_that_reads_no_further_is_found_and_leaves_its_group_at_once(pair):
    assignor = CountingAssignor(TOPIC)
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=pair.kafka.address,
        group_id="watched",
        group_instance_id="static",
        partition_assignment_strategy=[assignor],
        session_timeout_ms=6_000,
        heartbeat_interval_ms=200,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    watch = ConsumerWatch(consumer, assignor, TOPIC, session_seconds=0.5)
    wait_until(lambda: consumer.poll(timeout_ms=200) or consumer.assignment(), "assignment")
    assert assignor.partitions == len(consumer.assignment()) == len(pair.ends())
    for partition in consumer.assignment():
        consumer.seek(partition, 0)
    pair.start("unread")
    pair.finish("unread")
    # It is not polled, and so is as one that has died without saying so.
    wait_until(lambda: "is stalled on partitions" in watch.must_be_replaced(), "finding")
    leave_group(consumer)
    assert pair.members("watched") == []


def test_offsets_beyond_the_end_of_the_log_lose_no_run(pair):
    pair.publish_to_nobody("beyond-1", "beyond-2")
    with closing(KafkaConsumer(bootstrap_servers=pair.kafka.address, group_id="gpt2.tokenizer")) as consumer:
        ends = pair.ends()
        consumer.assign(list(ends))

        def is_committed() -> bool:
            try:
                consumer.commit({partition: OffsetAndMetadata(end + 1000, "", -1) for partition, end in ends.items()})
            except KafkaError:
                return False  # until the session of the dead member is over
            return True

        wait_until(is_committed, "offsets")
    pair.second.start().wait_until_ready()
    pair.start("after-beyond")
    pair.finish("beyond-1", "beyond-2", "after-beyond")


def test_a_broker_that_is_replaced_by_an_empty_one_loses_no_run(pair):
    pair.publish_to_nobody("empty-1", "empty-2")
    pair.kafka.stop()
    shutil.rmtree(pair.kafka.folder)
    pair.kafka.start()
    pair.second.start().wait_until_ready()
    pair.start("after-empty")
    pair.finish("empty-1", "empty-2", "after-empty")


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
