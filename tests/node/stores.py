"""The servers that the services need, one pod each, under the names that the manifests expect.

Their images are stand-ins under the images' names (tests/containers); their data end with their pods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.containers.images import STAND_INS

from .images import VERSION

TOKEN = "token-of-the-tests"
PASSWORD = "gpt2"
_IMAGES = {item.folder: item.image for item in STAND_INS}
BUCKET = "gpt2"
_DATABASES = ("exporter", "tokenizer", "trainer", "registry")


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        name: Of its Deployment and its Service.
        image: What it is started from.
        user: The image's.
        port: Where it listens.
        environment: Its variables.
        volumes: Folders that it writes.
        command: What runs; by default, the image's own.
        files: Files by name, in a folder of PostgreSQL's image for them.
    """

    name: str
    image: str
    user: int
    port: int
    environment: Mapping[str, str]
    volumes: Sequence[str]
    command: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def objects(self) -> list[dict[str, Any]]:
        """What is applied for it. Pod Security `restricted` admits its pod."""
        labels = {"app": self.name}
        volumes: list[dict[str, Any]] = [
            {"name": f"volume-{number}", "emptyDir": {}} for number in range(len(self.volumes))
        ]
        mounts = [{"name": f"volume-{number}", "mountPath": path} for number, path in enumerate(self.volumes)]
        if self.files:
            volumes.append({"name": "files", "configMap": {"name": self.name}})
            mounts.append({"name": "files", "mountPath": "/docker-entrypoint-initdb.d"})
        container = {
            "name": self.name,
            "image": self.image,
            "imagePullPolicy": "Never",
            "env": [{"name": name, "value": value} for name, value in self.environment.items()],
            "readinessProbe": {"tcpSocket": {"port": self.port}, "periodSeconds": 2},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": mounts,
            **({"command": list(self.command)} if self.command else {}),
        }
        pod = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": self.user,
                "runAsGroup": self.user,
                "fsGroup": self.user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        }
        template = {"metadata": {"labels": labels}, "spec": pod}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        metadata = {"name": self.name}
        return [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(self.files)},
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"selector": labels, "ports": [{"port": self.port}]},
            },
        ]


SERVERS = (
    Server(
        name="postgres",
        image=_IMAGES["postgres"],
        user=999,
        port=5432,
        # The root of a volume is not the server's own.
        environment={
            "POSTGRES_USER": "gpt2",
            "POSTGRES_PASSWORD": PASSWORD,
            "PGDATA": "/var/lib/postgresql/data/pgdata",
        },
        volumes=["/var/lib/postgresql/data"],
        files={"databases.sql": "".join(f"CREATE DATABASE {name};\n" for name in _DATABASES)},
    ),
    Server(
        name="kafka",
        image=_IMAGES["kafka"],
        user=1000,
        port=9092,
        environment={
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_LISTENERS": "INTERNAL://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": "INTERNAL://kafka:9092",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "5",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
            "KAFKA_LOG_DIRS": "/var/lib/kafka/data/logs",
            "KAFKA_HEAP_OPTS": "-Xms256m -Xmx512m",
        },
        volumes=["/var/lib/kafka/data"],
    ),
    Server(
        name="mongodb",
        image=_IMAGES["mongo"],
        user=999,
        port=27017,
        environment={"MONGO_INITDB_ROOT_USERNAME": "gpt2", "MONGO_INITDB_ROOT_PASSWORD": PASSWORD},
        volumes=["/data/db"],
    ),
    Server(
        name="mlflow",
        image=f"gpt2-registry:{VERSION}",
        user=10001,
        port=5000,
        environment={"MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000"},
        volumes=["/mlflow", "/tmp"],
        command=["python", "-m", "gpt2_registry.mlflow_server", "--serve-artifacts", "/mlflow", "0.0.0.0", "5000"],
    ),
)


OBJECT_STORE = Server(
    name="object-store",
    image=_IMAGES["s3"],
    user=10001,
    port=9000,
    environment={"HOME": "/tmp"},
    volumes=["/tmp"],
)
"""Where the overlays with S3 keep artifacts."""


def object_store_policy() -> dict[str, Any]:
    """The NetworkPolicy that the README of the manifests asks for where a store does not listen on port 443."""
    callers = {"matchExpressions": [{"key": "gpt2/role", "operator": "In", "values": ["service", "training"]}]}
    rule = {
        "to": [{"podSelector": {"matchLabels": {"app": OBJECT_STORE.name}}}],
        "ports": [{"protocol": "TCP", "port": OBJECT_STORE.port}],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "object-store"},
        "spec": {"podSelector": callers, "policyTypes": ["Egress"], "egress": [rule]},
    }


def secrets() -> list[dict[str, Any]]:
    """The Secrets that the README of the manifests asks for."""
    databases = {
        f"{name}-database-url": f"postgresql+psycopg://gpt2:{PASSWORD}@postgres:5432/{name}" for name in _DATABASES
    }
    uri = f"mongodb://gpt2:{PASSWORD}@mongodb:27017/?authSource=admin"
    contents = {
        "gpt2": {"auth-token": TOKEN, "mongodb-uri": uri, **databases},
        "gpt2-s3": {"access-key": "access-key", "secret-key": "secret-key"},
    }
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": content}
        for name, content in contents.items()
    ]
