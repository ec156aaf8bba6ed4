"""The graph of a pipeline's stages: which output of which stage each input takes, derived from the catalogue.

It does not import TFX, so that Airflow parses a DAG file quickly and other runners need no TFX.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message

from gpt2_catalogue import Stage, StageInput


@dataclass(frozen=True, slots=True)
class Source:
    """An output of a stage."""

    stage: str
    output: str


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """A stage of a pipeline: its request, and the outputs of other stages that its inputs take."""

    declaration: Stage
    """What its proto declares: inputs, outputs, service."""
    request: Message
    """Without the URIs of `inputs`."""
    inputs: Mapping[str, Source] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its start call, which is also that of its TFX component and of its task."""
        return self.declaration.name


def connect_stages(requests: Iterable[tuple[Stage, Message]]) -> tuple[PipelineStage, ...]:
    """Connects stages, each after those whose outputs it takes.

    An input takes the output of its kind of the latest stage before; an optional output only where no other is.
    """
    by_name = {stage.name: (stage, request) for stage, request in requests}
    ordered = order_stages(by_name.values())
    connected = []
    for number, stage in enumerate(ordered):
        request = by_name[stage.name][1]
        sources = {item.name: _find_source(item, ordered[:number]) for item in stage.inputs_from_stages(request)}
        inputs = {name: source for name, source in sources.items() if source is not None}
        connected.append(PipelineStage(declaration=stage, request=request, inputs=inputs))
    return tuple(connected)


def order_stages(stages: Iterable[tuple[Stage, Message]]) -> list[Stage]:
    """Orders stages, each with its request, by data flow; where they form a cycle, an optional input does not wait."""
    requests = {stage.name: (stage, request) for stage, request in stages}
    inputs = {name: stage.inputs_from_stages(request) for name, (stage, request) in requests.items()}
    waiting, ordered = [stage for stage, _ in requests.values()], []
    while waiting:
        ready = [stage for stage in waiting if not _waits(stage, waiting, inputs[stage.name])]
        ready += [stage for stage in waiting if not _waits(stage, waiting, required_inputs(stage))]
        ordered.append((ready or waiting)[0])
        waiting.remove(ordered[-1])
    return ordered


def pipeline_inputs(stage: Stage) -> Sequence[StageInput]:
    """The inputs that other stages of a pipeline can give, for some request."""
    return [item for item in stage.inputs if not item.only_from_request]


def required_inputs(stage: Stage) -> Sequence[StageInput]:
    """Those of `pipeline_inputs` without which the stage cannot start."""
    return [item for item in pipeline_inputs(stage) if item.required]


def _waits(stage: Stage, waiting: Sequence[Stage], inputs: Sequence[StageInput]) -> bool:
    kinds = {item.kind for item in inputs}
    return any(output.kind in kinds for other in waiting if other is not stage for output in other.outputs)


def _find_source(item: StageInput, before: Sequence[Stage]) -> Source | None:
    found = [
        (not output.optional, number, Source(stage.name, output.name))
        for number, stage in enumerate(before)
        for output in stage.outputs
        if output.kind == item.kind
    ]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None
