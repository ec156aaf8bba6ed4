"""Restricts the URIs of requests to the service's configured roots."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from gpt2_common.errors import InvalidRequest, Unavailable


def local_path(uri: str) -> Path | None:
    """The path of a `file://` URI; None for other schemes."""
    parts = urlsplit(uri)
    # The bytes of a name that is not UTF-8 come back as they were: replaced, they would name another file, or none.
    return Path(unquote(parts.path, errors="surrogateescape")) if parts.scheme == "file" else None


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system that a URI is in, and the path in it.

    Raises:
        Unavailable: The package for the URI's scheme is not installed.
    """
    path = local_path(uri)
    if path is not None:
        # fsspec would take `%20` for three characters of a name.
        return fsspec.filesystem("file"), str(path)
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise Unavailable(f"{uri} cannot be read here ({error}): install the package for its scheme") from error
    return filesystem, root


def require_allowed(field: str, uri: str, roots: Sequence[str]) -> str:
    """Checks that a URI lies under one of the roots; links in local paths are followed first.

    Args:
        field: Name of the request's field, for the error.
        uri: What the request says: a URI, or an absolute local path.
        roots: URIs of the allowed folders.

    Returns:
        The URI, normalised, without a slash at its end.

    Raises:
        InvalidRequest: It is empty, malformed, or outside the roots.
    """
    if not uri:
        raise InvalidRequest([(field, "is required")])
    if "\0" in uri or len(uri) > 2048:
        raise InvalidRequest(
            [
                (
                    field,
                    "is not a URI: it contains a NUL or has over 2048 characters; send one such as file:///data/corpus",
                )
            ]
        )
    if uri.startswith("/"):
        uri = Path(uri).as_uri()
    parts = urlsplit(uri)
    if not parts.scheme or parts.query or parts.fragment or (parts.scheme == "file" and parts.netloc):
        raise InvalidRequest([(field, f"{uri!r} is not a plain URI such as file:///data/corpus or s3://bucket/corpus")])
    path = local_path(uri)
    if path is not None:
        resolved = path.resolve()
        inside = any(root is not None and resolved.is_relative_to(root.resolve()) for root in map(local_path, roots))
        normal = resolved.as_uri()
    else:
        normal = f"{parts.scheme}://{parts.netloc}{posixpath.normpath(parts.path or '/')}".rstrip("/")
        plain = "%" not in uri and ".." not in parts.path.split("/")
        inside = plain and any(normal == root or normal.startswith(root + "/") for root in roots)
    if not inside:
        raise InvalidRequest(
            [(field, f"{uri} is outside the allowed roots ({', '.join(roots)}): add its root to GPT2_ALLOWED_ROOTS")]
        )
    return normal
