"""The kinds of artifact that the interface names are those that the services make."""

import re
from pathlib import Path

from gpt2_orchestration.calls import EVALUATE_MODEL, START_CALLS

PROTO = Path(__file__).parents[2] / "protos" / "gpt2" / "artifacts" / "v1" / "artifact.proto"


def test_the_proto_names_every_kind_of_artifact():
    comment = re.search(r"// Kind of content: ([^.]*)\.\s+string kind", PROTO.read_text())
    assert comment
    named = set(re.split(r"[,\s/]+", comment[1]))
    assert named == {output for call in (*START_CALLS.values(), EVALUATE_MODEL) for output in call.outputs}
