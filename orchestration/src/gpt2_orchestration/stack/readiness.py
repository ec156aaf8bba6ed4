"""Checks whether a server answers, by asking it something real. None raises; each answers within about a second."""

import contextlib
import socket

import grpc
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from gpt2_proxies import channel_options, open_url

_TIMEOUT_SECONDS = 1.0


def accepts_connections(address: str) -> bool:
    """Whether something listens at `host:port`. Costs nothing where nothing does."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=0.2):
        return True
    return False


def mongodb_answers(address: str) -> bool:
    """Whether a MongoDB server answers a ping."""
    try:
        client: MongoClient
        with MongoClient(f"mongodb://{address}", serverSelectionTimeoutMS=int(_TIMEOUT_SECONDS * 1000)) as client:
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def kafka_answers(address: str) -> bool:
    """Whether a Kafka broker answers with its metadata."""
    client = AdminClient({"bootstrap.servers": address, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=_TIMEOUT_SECONDS).brokers)
    except KafkaException:
        return False


def http_answers(address: str, path: str) -> bool:
    """Whether an HTTP server answers a path with success."""
    try:
        with open_url(f"http://{address}{path}", _TIMEOUT_SECONDS) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def grpc_answers(address: str) -> bool:
    """Whether a gRPC server says that it is healthy."""
    with grpc.insecure_channel(address, channel_options(address)) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
