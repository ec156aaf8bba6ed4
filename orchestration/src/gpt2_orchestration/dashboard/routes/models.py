"""Models: their versions, side by side, and their labels, which are set and removed."""

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_orchestration.client.registered_models import list_models
from gpt2_orchestration.client.service_client import ServiceClient
from gpt2_orchestration.dashboard.routes.bodies import Body, read_body
from gpt2_orchestration.dashboard.serialization import describe_change, describe_comparison, describe_version

_MAX_VERSIONS = 200
_MAX_CHANGES = 500


class LabelBody(Body):
    """A change of a label."""

    label: str
    version: int
    """Number of the version that gets it; 0 to take it away."""
    actor: str = ""
    """Whom to record, for whom the dashboard's token must be allowed to act; empty: the dashboard itself."""
    reason: str = ""


class ModelRoutes:
    """The calls that are about models.

    Args:
        registry: Client of the registry.
    """

    def __init__(self, registry: ServiceClient) -> None:
        self._registry = registry

    def routes(self) -> list[Route]:
        """The paths, and what answers them."""
        return [
            Route("/models", self.show_all),
            Route("/models/{name}", self.show),
            Route("/models/{name}/comparison", self.compare),
            Route("/models/{name}/label", self.label, methods=["POST"]),
        ]

    def show_all(self, request: Request) -> JSONResponse:  # noqa: ARG002
        """All models, by name."""
        models = [
            {"name": model.model_name, "labels": dict(model.labels), "latest_version": model.latest_version}
            for model in list_models(self._registry)
        ]
        return JSONResponse({"models": models})

    def show(self, request: Request) -> JSONResponse:
        """One model."""
        name = request.path_params["name"]
        asked = pb.ListModelVersionsRequest(model_name=name, page_size=_MAX_VERSIONS)
        page = self._registry.call("ListModelVersions", asked)
        changes = self._registry.call("ListLabelChanges", pb.ListLabelChangesRequest(model_name=name)).changes
        return JSONResponse(
            {
                "name": name,
                "versions": [describe_version(version) for version in page.model_versions],
                "more": bool(page.next_page_token),
                "changes": [describe_change(change) for change in changes[:_MAX_CHANGES]],
            }
        )

    def compare(self, request: Request) -> JSONResponse:
        """Versions of one model side by side."""
        name = request.path_params["name"]
        try:
            numbers = [int(number) for number in request.query_params.get("versions", "").split(",")]
            asked = pb.CompareModelsRequest(model_name=name, versions=numbers)
        except ValueError:
            raise HTTPException(400, "versions: must be numbers of versions with commas between, such as 1,2") from None
        return JSONResponse(describe_comparison(name, self._registry.call("CompareModels", asked)))

    async def label(self, request: Request) -> JSONResponse:
        """Moves a label, or takes it away."""
        body = await read_body(request, LabelBody)
        if not 0 <= body.version < 2**63:
            raise HTTPException(400, "version: must be the number of a version, or 0 to take the label away")
        change = {"model_name": request.path_params["name"], "label": body.label, "actor": body.actor}
        if body.version:
            set_label = pb.SetLabelRequest(**change, reason=body.reason, version=body.version)
            answer = await run_in_threadpool(self._registry.call, "SetLabel", set_label)
        else:
            clear_label = pb.ClearLabelRequest(**change, reason=body.reason)
            answer = await run_in_threadpool(self._registry.call, "ClearLabel", clear_label)
        return JSONResponse({"previous_version": answer.previous_version})
