"""The first container of a pipeline runs `python -m gpt2_orchestration.runners.kubeflow.validation EXECUTOR_INPUT`.

The services validate all stages before the first one starts. EXECUTOR_INPUT is as in `task.py`; its parameter `stages`
has the JSON of `stages_json`.
"""

import json
import sys
from collections.abc import Sequence

from google.protobuf import json_format

from gpt2_catalogue import catalogue
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError
from gpt2_orchestration.pipelines.graph import PipelineStage, Source
from gpt2_orchestration.pipelines.specification import SpecificationError
from gpt2_orchestration.pipelines.validation import validate_stages


def stages_json(stages: Sequence[PipelineStage]) -> str:
    """Stages in JSON, as a parameter of the container."""
    content = [
        {
            "name": stage.name,
            "request": json_format.MessageToDict(stage.request),
            "inputs": {name: [source.stage, source.output] for name, source in stage.inputs.items()},
        }
        for stage in stages
    ]
    return json.dumps(content, sort_keys=True)


def main(arguments: list[str]) -> int:
    """Runs the command; its exit status is the result."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    stages = []
    for item in json.loads(json.loads(arguments[0])["inputs"]["parameterValues"]["stages"]):
        stage = catalogue().stages[item["name"]]
        request = json_format.ParseDict(item["request"], stage.request())
        inputs = {name: Source(*source) for name, source in item["inputs"].items()}
        stages.append(PipelineStage(declaration=stage, request=request, inputs=inputs))
    try:
        for warning in validate_stages(stages, ClientSettings.from_environment()):
            print(f"warning: {warning}", file=sys.stderr)
    except (ServiceError, SpecificationError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
