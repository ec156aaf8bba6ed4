"""Chooses a port for each process: the preferred one where it is free, else any free one."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack

HOST = "127.0.0.1"


def choose_ports(preferred: Mapping[str, int]) -> dict[str, int]:
    """Chooses ports, no two alike.

    Args:
        preferred: Port wanted by each name; 0 for any.

    Returns:
        The port of each name. Another process can still take one before it is used.
    """
    with ExitStack() as held:
        # All are held until all are chosen, so that a free one cannot be chosen twice.
        return {name: _hold(port, held) for name, port in preferred.items()}


def _hold(preferred: int, held: ExitStack) -> int:
    try:
        return _bind(preferred, held)
    except OSError:
        return _bind(0, held)


def _bind(port: int, held: ExitStack) -> int:
    server = held.enter_context(socket.socket())
    # As servers do: a port whose last connections are still being closed is free.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((HOST, port))
    server.listen()
    chosen: int = server.getsockname()[1]
    return chosen
