"""Private interfaces of dependencies: which the code uses, and the version of the dependency that has them so."""

import ast
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = {"_exit", "_replace"}  # os._exit, and the method of named tuples
USED = {
    # Of a consumer group: its last metadata, its heartbeats, and whether a member is static.
    ("kafka-python", "2.3.3"): {"_client", "_coordinator"},
    # Paths as `find` returns them.
    ("fsspec", "2026.9.0"): {"_strip_protocol"},
    # Another tokenizer is measured with tiktoken's vocabulary.
    ("tiktoken", "0.14.0"): {"_mergeable_ranks"},
}


def private_names(path: Path) -> set[str]:
    """Private attributes that a file takes of other objects than its own, and private names that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= set() if own else {node.attr}
        elif isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(name.name for name in node.names)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_private_interfaces_of_dependencies_are_those_that_are_listed():
    sources = [*ROOT.glob("*/*/src/**/*.py"), *ROOT.glob("*/src/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    found = {name: path for path in sources if "_pb2" not in path.stem for name in private_names(path) - PUBLIC}
    assert found.keys() == set().union(*USED.values()), found


@pytest.mark.parametrize(("dependency", "known"), USED)
def test_private_interfaces_are_used_of_the_versions_that_were_read(dependency, known):
    assert version(dependency) == known, (
        "read how the new version does what the names in USED are used for, then list it"
    )
