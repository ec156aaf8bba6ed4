"""How the services and the servers beside them are."""

from collections.abc import Callable

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from gpt2_orchestration.client.services import Services, event_problem
from gpt2_orchestration.dashboard.serialization import Json
from gpt2_orchestration.dashboard.settings import DashboardSettings
from gpt2_proxies import open_url, web_proxy_note

_SECONDS = 5.0


class HealthRoutes:
    """The calls that are about health.

    Args:
        services: The services to poll.
        settings: Where the servers beside them are.
    """

    def __init__(self, services: Services, settings: DashboardSettings) -> None:
        self._services = services
        self._settings = settings

    def routes(self) -> list[Route]:
        """The paths, and what answers them."""
        return [Route("/services", self.show_all)]

    def show_all(self, request: Request) -> JSONResponse:  # noqa: ARG002
        """Each service, Kafka and TensorBoard: whether it answers, and events reach it, and what to do where not."""
        answers = self._services.ask(lambda client: client.describe())
        services = []
        for name, client in self._services.clients.items():
            error = answers.errors.get(name)
            if error:
                services.append(_entry(name, client.address, str(error)))
                continue
            about = answers.found[name]
            services.append(_entry(name, client.address, event_problem(about.events), about.version))
        kafka, tensorboard = self._settings.kafka_bootstrap_servers, self._settings.tensorboard_uri
        services.append(_checked("kafka", kafka, "GPT2_KAFKA_BOOTSTRAP_SERVERS", _ask_kafka))
        services.append(_checked("tensorboard", tensorboard, "GPT2_TENSORBOARD_URI", _ask_tensorboard))
        links = {"tensorboard": self._settings.tensorboard_link, "mlflow": self._settings.mlflow_link}
        return JSONResponse({"services": services, "links": {name: uri for name, uri in links.items() if uri}})


async def alive(request: Request) -> PlainTextResponse:  # noqa: ARG001
    """For probes: the server runs, whatever the services do."""
    return PlainTextResponse("ok")


def _checked(name: str, address: str, variable: str, ask: Callable[[str], object]) -> Json:
    try:
        ask(address)
    except (OSError, KafkaError) as error:
        what = f"{name} at {address} does not answer ({error}): start it (`gpt2 stack up`), or correct {variable}"
        what += web_proxy_note(address)
        return _entry(name, address, what)
    return _entry(name, address)


def _ask_kafka(address: str) -> None:
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=None)
    try:
        consumer.topics()
    finally:
        consumer.close()


def _ask_tensorboard(address: str) -> None:
    open_url(f"{address}/data/environment", _SECONDS).close()


def _entry(name: str, address: str, message: str = "", version: str = "") -> Json:
    return {"name": name, "address": address, "ok": not message, "version": version, "message": message}
