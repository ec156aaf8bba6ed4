"""Validation of requests and of the stages of a plan, without data.

The rules of the protos are checked here for all services. Each service adds checks of its requests; the others call
it when they accept a plan.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_catalogue import Stage, catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest, PeerUnavailable
from gpt2_common.jobs.options import job_options_problems, stage_name
from gpt2_common.peers import Peers
from gpt2_rules import Violation, violations
from gpt2_rules.forms import is_inside, nearest_name, read_form, violations_besides

Validator = Callable[[Any], Sequence[Violation]]
"""Takes the request of a start call; returns its violations."""


def no_violations(_request: Any) -> Sequence[Violation]:
    """A Validator that finds none."""
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChecks:
    """A service's own checks of one of its start calls, besides the rules of the protos and the roots of URIs."""

    request: Validator = no_violations
    """Uses only the service's settings."""
    inputs: Validator = no_violations
    """Reads the inputs; called in a thread, for a new job whose request has no other violations."""


_REQUIRED = "is required"


class RequestChecks:
    """Checks requests for one service.

    Args:
        stages: The service's own stages.
        checks: Its own checks, by name of the start call.
        peers: The services that take the other start calls.
        artifacts: Where inputs may be, and where the artifacts of earlier stages will be.
    """

    def __init__(
        self, stages: Iterable[Stage], checks: Mapping[str, StageChecks], peers: Peers, artifacts: ArtifactStore
    ) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._checks = checks
        self._peers = peers
        self._artifacts = artifacts

    def check_request(self, kind: str, request: Any) -> list[Violation]:
        """Returns the violations of a request to the service, without those of its plan's stages."""
        broken = [*violations(request), *job_options_problems(request.job, kind)]
        return merge_violations(broken, self._own_violations(self._stages[kind], request))

    async def check_inputs(self, kind: str, request: Any) -> list[Violation]:
        """Returns the violations of the artifacts that a request names, which has no others."""
        return list(await asyncio.to_thread(self._checks.get(kind, StageChecks()).inputs, request))

    def check_stage(self, stage: jobs_service_pb2.ValidateStageRequest) -> list[Violation]:
        """Returns the violations of a stage. Raises InvalidRequest if it is not one of this service."""
        own = self._stages.get(stage.start)
        if own is None:
            near = nearest_name(stage.start, sorted(self._stages))
            raise InvalidRequest([("start", f"{stage.start!r} is no start call of this service; {near}")])
        request, found = self._read_stage(own, stage.request, stage.artifacts)
        return merge_violations(found, self._own_violations(own, request))

    async def check_plan(self, kind: str, options: job_pb2.JobOptions) -> tuple[list[Violation], list[str]]:
        """Returns the violations of the stages of a plan; each service validates its own.

        Args:
            kind: The start call that carries the plan.
            options: Its job options.

        Returns:
            The violations, and warnings about stages whose service could not be asked.
        """
        stages = catalogue().stages
        made = {artifact.name for artifact in options.plan.artifacts} | set(stages[kind].output_names)
        checks = []
        for stage in options.plan.stages:
            if stage.start in stages:
                request = jobs_service_pb2.ValidateStageRequest(
                    start=stage.start, request=stage.request, artifacts=sorted(made)
                )
                checks.append(self._check_planned(stage_name(stage), request))
                made |= set(stages[stage.start].output_names)
            else:
                checks.append(_nothing())
        results = await asyncio.gather(*checks)
        found = [
            (f"job.plan.stages[{number}].request" + (f".{path}" if path else ""), description)
            for number, (broken, _) in enumerate(results)
            for path, description in broken
        ]
        return found, [warning for _, warnings in results for warning in warnings]

    async def _check_planned(
        self, name: str, stage: jobs_service_pb2.ValidateStageRequest
    ) -> tuple[list[Violation], list[str]]:
        if stage.start in self._stages:
            return self.check_stage(stage), []
        described = catalogue().stages[stage.start]
        _, found = self._read_stage(described, stage.request, stage.artifacts)
        try:
            return merge_violations(found, await self._peers.validate(described.service, stage)), []
        except PeerUnavailable as error:
            return found, [f"stage {name} was checked by its rules alone when the plan was accepted: {error.message}"]

    def _own_violations(self, stage: Stage, request: Any) -> list[Violation]:
        """Returns the violations of a request by the roots of its inputs and the service's own checks."""
        found: list[Violation] = []
        for item in stage.inputs:
            try:
                if uri := getattr(request, item.field):
                    self._artifacts.require_allowed(item.field, uri)
            except InvalidRequest as error:
                found += error.violations
        return merge_violations(found, self._checks.get(stage.name, StageChecks()).request(request))

    def _read_stage(self, stage: Stage, content: Struct, artifacts: Iterable[str]) -> tuple[Message, list[Violation]]:
        """Parses the request of a stage. Returns its valid fields, and its violations of the rules."""
        try:
            form = json_format.MessageToDict(content)
        except (json_format.Error, ValueError) as error:
            return stage.request(), [("", f"cannot be read: {error}")]
        if "job" in form:
            # A plan gives a stage its id and run; the check of the plan reports them.
            del form["job"]
        request, unread = read_form(form, stage.request)
        stage.fill_inputs(request, {name: f"{self._artifacts.root}/{name}" for name in artifacts})
        broken = violations_besides(request, unread)
        return request, [*unread, *(_explained(violation, stage) for violation in broken)]


async def _nothing() -> tuple[list[Violation], list[str]]:
    return [], []


def merge_violations(first: Iterable[Violation], second: Iterable[Violation]) -> list[Violation]:
    """Merges violations, without those of the second at fields, or inside fields, that the first has."""
    found = list(first)
    wrong = [path for path, _ in found]
    return [*found, *(item for item in second if not any(is_inside(item[0], path) for path in wrong))]


def _explained(violation: Violation, stage: Stage) -> Violation:
    """Explains the violation of a missing artifact: no earlier stage makes it."""
    path, description = violation
    missing = stage.find_input(path)
    if missing is None or missing.only_from_request or description != _REQUIRED:
        return violation
    return path, f"is required, as no stage before makes the artifact {missing.name!r}"
