"""`python -m gpt2_orchestration.stack.kafka_broker ADDRESS_FILE TOPIC...`: a Kafka broker for one machine.

It is librdkafka's own mock cluster, from the library inside the confluent-kafka wheel: it speaks Kafka's protocol, and
keeps the latest records of each partition (about 5 MB) in memory and nothing on disk. Clients reach it through
kafka_long_poll.py. It writes its address into ADDRESS_FILE once it listens.
"""

import argparse
import asyncio
import ctypes
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gpt2_orchestration.stack.kafka_long_poll import LongPollServer

PARTITIONS = 6
_PRODUCER = 0
_ERROR_BYTES = 512
_BROKER_ID = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class BrokerError(Exception):
    """The broker cannot start."""


class MockBroker:
    """One broker in this process; it ends with the process.

    Args:
        library: librdkafka.

    Raises:
        BrokerError: librdkafka refused, or lacks the mock cluster.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        try:
            self._declare()
        except AttributeError as error:
            raise BrokerError(f"this librdkafka has no mock cluster ({error})") from error
        reason = ctypes.create_string_buffer(_ERROR_BYTES)
        client = library.rd_kafka_new(_PRODUCER, None, reason, _ERROR_BYTES)
        if not client:
            raise BrokerError(reason.value.decode(errors="replace"))
        self._cluster = library.rd_kafka_mock_cluster_new(client, 1)
        if not self._cluster:
            raise BrokerError("librdkafka could not start its mock cluster")

    @property
    def address(self) -> str:
        """The `host:port` that it listens on itself."""
        return str(self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def advertise(self, host: str, port: int) -> None:
        """Tells clients another address than its own. Raises BrokerError."""
        code = self._library.rd_kafka_mock_broker_set_host_port(self._cluster, _BROKER_ID, host.encode(), port)
        if code:
            raise BrokerError(f"librdkafka does not take {host}:{port} as its address (error {code})")

    def create_topic(self, name: str) -> None:
        """Creates a topic. Raises BrokerError."""
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), PARTITIONS, 1)
        if code:
            raise BrokerError(f"topic {name} could not be created (librdkafka error {code})")

    def _declare(self) -> None:
        """Gives the functions their types, as rdkafka.h and rdkafka_mock.h declare them."""
        handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        library = self._library
        library.rd_kafka_new.argtypes = [number, handle, text, ctypes.c_size_t]
        library.rd_kafka_new.restype = handle
        library.rd_kafka_mock_cluster_new.argtypes = [handle, number]
        library.rd_kafka_mock_cluster_new.restype = handle
        library.rd_kafka_mock_cluster_bootstraps.argtypes = [handle]
        library.rd_kafka_mock_cluster_bootstraps.restype = text
        library.rd_kafka_mock_topic_create.argtypes = [handle, text, number, number]
        library.rd_kafka_mock_topic_create.restype = number
        library.rd_kafka_mock_broker_set_host_port.argtypes = [handle, ctypes.c_int32, text, number]
        library.rd_kafka_mock_broker_set_host_port.restype = number


def load_library() -> ctypes.CDLL:
    """Loads librdkafka from the confluent-kafka wheel. Raises BrokerError."""
    package = find_spec("confluent_kafka")
    if package is None or package.origin is None:
        raise BrokerError("confluent-kafka is not installed: install gpt2-orchestration[embedded]")
    folder = Path(package.origin).parent
    # The wheels of Linux keep it beside the package, those of macOS inside.
    for candidate in (*folder.parent.glob("confluent_kafka.libs/librdkafka*"), *folder.glob(".dylibs/librdkafka*")):
        return ctypes.CDLL(str(candidate))
    raise BrokerError("the confluent-kafka package holds no librdkafka: install its wheel, not its source")


def main(arguments: Sequence[str]) -> None:
    """Serves until a signal ends the process."""
    parser = argparse.ArgumentParser(description="A Kafka broker for one machine; keeps nothing on disk.")
    parser.add_argument("address_file", type=Path)
    parser.add_argument("topics", nargs="*")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; default: any port of loopback")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    try:
        listener = socket.create_server((host, int(port)))
        broker = MockBroker(load_library())
        broker.advertise(host, listener.getsockname()[1])
        for topic in options.topics:
            broker.create_topic(topic)
    except (BrokerError, OSError) as error:
        sys.exit(f"kafka: {error}")
    asyncio.run(_serve(broker, listener, options.address_file))


async def _serve(broker: MockBroker, listener: socket.socket, address_file: Path) -> None:
    """Serves clients on a socket until a signal comes."""
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    broker_host, _, broker_port = broker.address.rpartition(":")
    server = await asyncio.start_server(LongPollServer(broker_host, int(broker_port)).serve, sock=listener)
    host, port = listener.getsockname()
    _write_whole(address_file, f"{host}:{port}")
    print(f"listens on {host}:{port}; keeps nothing on disk", flush=True)
    await stop.wait()
    server.close()


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    # Before librdkafka starts its threads, which inherit the mask: else one of them would take the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    main(sys.argv[1:])
