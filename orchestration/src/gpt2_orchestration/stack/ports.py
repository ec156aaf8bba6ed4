"""Chooses a port for each process: the preferred one where it is free, else any free one."""

import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path

HOST = "127.0.0.1"


def choose_ports(preferred: Mapping[str, int]) -> dict[str, int]:
    """Chooses ports, no two alike.

    Args:
        preferred: Port wanted by each name; 0 for any.

    Returns:
        The port of each name. Another process can still take one before it is used.
    """
    with claimed_ports(preferred) as chosen:
        return chosen


@contextmanager
def claimed_ports(preferred: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Chooses ports as `choose_ports` does; as long as the context lasts, nobody but their servers takes them.

    A server takes its port only seconds after it was chosen. Meanwhile another stack that starts would choose the same,
    and the system may give the port to a connection that any process opens: 50051 and its neighbours lie among those
    that Linux gives to connections.
    """
    with ExitStack() as claims, ExitStack() as held:
        # All are held until all are chosen, so that a free one cannot be chosen twice.
        chosen = {name: _hold(port, held, claims) for name, port in preferred.items()}
        held.close()
        # Only on Linux may a server listen at a port to which another socket is bound.
        if sys.platform == "linux":
            for port in chosen.values():
                _bind(port, claims)
        yield chosen


def _hold(preferred: int, held: ExitStack, claims: ExitStack) -> int:
    for candidate in chain([preferred], repeat(0)):
        try:
            server = _bind(candidate, held)
            server.listen()
        except OSError:
            if candidate == 0:
                raise
            continue
        port: int = server.getsockname()[1]
        with suppress(BlockingIOError):
            _claim(port, claims)
            return port
    raise AssertionError("candidates never end")


def _bind(port: int, held: ExitStack) -> socket.socket:
    bound = held.enter_context(socket.socket())
    # As servers do: a port whose last connections are still being closed is free, and one that is merely bound too.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound


def _claim(port: int, claims: ExitStack) -> None:
    """Locks the file that stands for a port. Raises BlockingIOError when another process has it."""
    folder = Path(tempfile.gettempdir()) / f"gpt2-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = claims.enter_context((folder / str(port)).open("w"))
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
