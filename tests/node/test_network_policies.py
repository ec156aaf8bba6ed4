"""Who reaches whom under the overlay's NetworkPolicies, by connections from pods of several kinds."""

import json

import pytest

from .images import VERSION
from .pods import run_pod

pytestmark = [pytest.mark.process, pytest.mark.parametrize("services", ["cpu"], indirect=True)]
IMAGE = f"gpt2-airflow:{VERSION}"
SERVICES = ("exporter.gpt2:50051", "tokenizer.gpt2:50052", "trainer.gpt2:50053", "registry.gpt2:50054")
CLIENT = {"gpt2/client": "true"}
OPEN, CLOSED = "open", "closed"
PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reach(target):
    host, port = target.rsplit(":", 1)
    try:
        # A policy's packets are dropped, not refused. The first ones of a new pod may be, until its address is known.
        socket.create_connection((host, int(port)), 10).close()
    except TimeoutError:
        return "closed"
    except OSError as error:
        return repr(error)
    return "open"

with ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(reach, sys.argv[1:])))))
"""


@pytest.fixture(scope="module")
def namespaces(services, administrator):
    """Another team's namespace, and one that may call the services."""
    names = ("strangers", "clients")
    for name in names:
        administrator.create_namespace(name)
    administrator.control_plane.kubectl("label", "namespace", "clients", "gpt2/clients=true")
    yield
    administrator.control_plane.kubectl("delete", "namespace", *names, "--wait=false")


def address(services, name, port):
    """That of a pod, as the dashboard has no Service."""
    [pod] = services.pods(name)
    return f"{pod['status']['podIP']}:{port}"


@pytest.mark.parametrize(
    ("namespace", "labels", "expected"),
    [
        ("gpt2", CLIENT, OPEN),
        ("gpt2", {}, CLOSED),
        ("clients", CLIENT, OPEN),
        ("clients", {}, CLOSED),
        ("strangers", CLIENT, CLOSED),
    ],
    ids=["client", "no client", "client of a namespace of clients", "no client there", "client elsewhere"],
)
def test_services_are_reached_by_clients_alone_and_the_dashboard_by_nobody(
    services, namespaces, administrator, namespace, labels, expected
):
    dashboard = address(services, "dashboard", 8090)
    name = f"probe-{len(labels)}"
    command = ["python", "-c", PROBE, *SERVICES, dashboard]
    printed = run_pod(administrator, namespace, name, IMAGE, command, labels)
    assert json.loads(printed) == {**dict.fromkeys(SERVICES, expected), dashboard: CLOSED}


def test_a_service_reaches_what_it_needs_and_no_more(services):
    dashboard = address(services, "dashboard", 8090)
    allowed = [*SERVICES, "postgres:5432", "kafka:9092", "mongodb:27017", "mlflow:5000"]
    expected = {**dict.fromkeys(allowed, OPEN), dashboard: CLOSED}
    assert reached_from(services, "exporter", expected) == expected


def test_the_dashboard_reaches_services_and_kafka_alone(services):
    allowed = [*SERVICES, "kafka:9092"]
    denied = ["postgres:5432", "mongodb:27017", "mlflow:5000"]
    expected = {**dict.fromkeys(allowed, OPEN), **dict.fromkeys(denied, CLOSED)}
    assert reached_from(services, "dashboard", expected) == expected


def reached_from(services, name, targets):
    command = ["exec", f"deployment/{name}", f"--container={name}", "--", "python", "-c", PROBE, *targets]
    return json.loads(services.kubectl(*command))
