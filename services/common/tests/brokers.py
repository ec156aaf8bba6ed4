"""The two brokers that the tests run against, as processes: the embedded one, and Apache Kafka."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

HERE = Path(__file__).parent
TOPIC = "gpt2.stage-events.v1"
_RESOLVED = HERE.parents[2] / ".tools" / "kafka"


class EmbeddedBroker:
    """The stand-in; a restart loses all."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "kafka.address"
        self.address = ""

    def start(self) -> "EmbeddedBroker":
        module = "gpt2_orchestration.stack.kafka_broker"
        self.process = subprocess.Popen([sys.executable, "-m", module, str(self._file), TOPIC, f"{TOPIC}.dlq"])
        deadline = time.monotonic() + 60
        while not self._file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = self._file.read_text()
        return self

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class ApacheKafka:
    """The real one; it keeps its data and its port over a restart."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder / "kafka"
        self._log = folder / "kafka.log"
        self.address = f"127.0.0.1:{port}"

    def start(self) -> "ApacheKafka":
        share_class_path(_RESOLVED, self.folder)
        command = [sys.executable, "-m", "gpt2_orchestration.stack.kafka_server", str(self.folder), self.address]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        while not self._answers():
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline
        share_class_path(self.folder, _RESOLVED)
        return self

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
            return bool(client.list_topics(timeout=1).brokers)
        except KafkaException:
            return False


def share_class_path(source: Path, target: Path) -> None:
    """Copies the list of Kafka's jars between folders of brokers: Maven takes seconds of a processor to resolve it."""
    target.mkdir(parents=True, exist_ok=True)
    for listing in source.glob("classpath-*.txt"):
        if not (target / listing.name).exists():
            part = target / f"{listing.name}.{os.getpid()}.part"
            shutil.copyfile(listing, part)
            part.replace(target / listing.name)


def require_java() -> None:
    """Skips the test where Apache Kafka cannot run."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            pytest.skip(f"Apache Kafka needs Java 17 and Maven: {program} is not on the PATH")
