"""`python -m gpt2_orchestration.stack.kafka_server FOLDER HOST:PORT`: Apache Kafka, from its published jars.

One broker in KRaft mode, its own controller, with its data in FOLDER. Maven resolves the jars that `kafka/pom.xml`
names into its own cache; after the first time that needs no network. The process becomes Java.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gpt2_orchestration.errors import UserError
from gpt2_orchestration.stack.ports import HOST, choose_ports

POM = Path(__file__).parent / "kafka" / "pom.xml"
_MIN_JAVA = 17
HEAP_OPTIONS = ("-Xms256m", "-Xmx512m")
SINGLE_BROKER_PROPERTIES: Mapping[str, str] = MappingProxyType(
    {
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "5",
        "num.io.threads": "2",
        "num.network.threads": "2",
    }
)
"""Of a broker that is alone; a test compares docker-compose.yml with them, and with its memory."""


class KafkaError(UserError):
    """Kafka cannot be run here; the message says what to do."""


def require_kafka() -> None:
    """Checks that what Kafka needs is on this machine. Raises KafkaError."""
    java = shutil.which("java")
    if java is None or shutil.which("mvn") is None:
        missing = "Java" if java is None else "Maven"
        raise KafkaError(
            f"{missing} is not on the PATH: Apache Kafka needs Java {_MIN_JAVA} or later and Maven; install both, "
            "or leave out --kafka"
        )
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < _MIN_JAVA:
        raise KafkaError(f"Apache Kafka needs Java {_MIN_JAVA} or later, not {said.splitlines()[:1]}: install it")


def class_path(folder: Path) -> str:
    """The jars of Kafka as Maven resolves them; a later start in the folder needs no Maven. Raises KafkaError."""
    listing = folder / f"classpath-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}.txt"
    if listing.exists():
        jars = listing.read_text(encoding="utf-8").strip()
        if all(Path(jar).is_file() for jar in jars.split(os.pathsep)):
            return jars
    part = listing.with_suffix(".part")
    command = ["mvn", "--batch-mode", "--quiet", "--file", str(POM), "dependency:build-classpath"]
    resolved = subprocess.run([*command, f"-Dmdep.outputFile={part}"], capture_output=True, text=True)
    if resolved.returncode != 0:
        raise KafkaError(f"Maven cannot resolve the jars of Kafka: {(resolved.stdout + resolved.stderr)[-1000:]}")
    part.replace(listing)
    return listing.read_text(encoding="utf-8").strip()


def write_configuration(folder: Path, address: str) -> Path:
    """Writes the properties of the broker. Returns their file."""
    controller = f"{HOST}:{choose_ports({'controller': 0})['controller']}"
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{address},CONTROLLER://{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "logs"),
        **SINGLE_BROKER_PROPERTIES,
    }
    path = folder / "server.properties"
    path.write_text("".join(f"{name}={_escaped(value)}\n" for name, value in properties.items()), encoding="ascii")
    return path


def _escaped(value: str) -> str:
    """A value as Java's properties have it: they are read as Latin-1, and a backslash begins an escape."""
    units = value.encode("utf-16-be")
    codes = [int.from_bytes(units[place : place + 2]) for place in range(0, len(units), 2)]
    return "".join(chr(code) if 31 < code < 127 and code != ord("\\") else f"\\u{code:04x}" for code in codes)


def _environment() -> dict[str, str]:
    """The environment for Java, which writes names of files in the encoding of the locale."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def format_storage(java: Sequence[str], configuration: Path, folder: Path) -> None:
    """Formats the storage, where it is not. Raises KafkaError."""
    if (folder / "logs" / "meta.properties").exists():
        return
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # In one word, as an id can begin with a dash and would be taken for an option.
    command = [*java, "kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={cluster}"]
    formatted = subprocess.run([*command, "-c", str(configuration)], env=_environment(), capture_output=True, text=True)
    if formatted.returncode != 0:
        raise KafkaError(f"Kafka's storage cannot be formatted: {(formatted.stdout + formatted.stderr)[-1000:]}")


def main(arguments: Sequence[str]) -> None:
    """Becomes Kafka."""
    parser = argparse.ArgumentParser(description="Apache Kafka, from its published jars.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        require_kafka()
        java = ("java", *HEAP_OPTIONS, "-cp", class_path(folder))
        configuration = write_configuration(folder, options.address)
        format_storage(java, configuration, folder)
    except KafkaError as error:
        sys.exit(f"kafka: {error}")
    os.execvpe("java", (*java, "kafka.Kafka", str(configuration)), _environment())


if __name__ == "__main__":
    main(sys.argv[1:])
