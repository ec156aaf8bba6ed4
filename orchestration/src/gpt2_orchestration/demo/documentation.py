"""The documentation of the Python standard library on this machine, as text documents.

A document per module, read from its source without importing it: the docstring, then classes and functions with
signature and docstring. Topics of Python's help are documents too; installed packages fill up to the requested size.
"""

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EXCLUDED = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})
_MIN_CHARACTERS = 200
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Document:
    """One document: a name, and its text."""

    name: str
    text: str


def documents(min_bytes: int) -> Iterator[Document]:
    """Yields documents, the standard library's first, until they have at least `min_bytes` bytes of UTF-8."""
    paths = sysconfig.get_paths()
    folders = (Path(paths["stdlib"]), Path(paths["purelib"]))
    size = 0
    for document in _of_folders(folders):
        yield document
        size += len(document.text.encode())
        # The standard library is complete; packages are added as needed.
        if size >= min_bytes and not document.name.startswith("python/"):
            return


def _of_folders(folders: tuple[Path, ...]) -> Iterator[Document]:
    for folder, prefix in zip(folders, ("python", "packages"), strict=True):
        for path in sorted(folder.rglob("*.py")):
            if not _EXCLUDED & set(path.relative_to(folder).parts):
                yield from _of_file(path, f"{prefix}/{path.relative_to(folder).with_suffix('').as_posix()}")


def _of_file(path: Path, name: str) -> Iterator[Document]:
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    if path.match("pydoc_data/topics.py"):
        yield from _topics(module, name)
        return
    text = _module_text(name, module)
    if len(text) >= _MIN_CHARACTERS:
        yield Document(name, text)


def _topics(module: ast.Module, name: str) -> Iterator[Document]:
    """The texts of Python's help, which are values of a dictionary in the source."""
    for node in ast.walk(module):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield Document(f"{name}/{key.value!s}", value.value)


def _module_text(name: str, module: ast.Module) -> str:
    parts = [name.partition("/")[2].replace("/", ".")]
    if docstring := ast.get_docstring(module):
        parts.append(docstring)
    parts.extend(_member_text(node, "") for node in module.body if isinstance(node, _DOCUMENTED))
    return "\n\n".join(part for part in parts if part) + "\n"


def _member_text(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> str:
    """A class or function with its documentation; empty when it has none."""
    docstring = ast.get_docstring(node)
    full_name = f"{owner}{node.name}"
    members = [
        _member_text(member, f"{full_name}.")
        for member in node.body
        if isinstance(node, ast.ClassDef) and isinstance(member, _DOCUMENTED)
    ]
    heading = _heading(node, full_name)
    own = [f"{heading}\n\n{docstring}"] if docstring else [heading] if any(members) else []
    return "\n\n".join([*own, *(member for member in members if member)])


def _heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, full_name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {full_name}({bases})" if bases else f"class {full_name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{full_name}({ast.unparse(node.args)}){returns}"
