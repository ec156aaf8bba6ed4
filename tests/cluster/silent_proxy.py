"""A TCP proxy whose connections can fall silent: open on both sides, and nothing passes any more.

That is what a NAT or a load balancer does that has forgotten a connection.
"""

import contextlib
import socket
import threading


class SilentProxy:
    """Passes connections on until it is closed.

    Args:
        host: Where to.
        port: Where to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._generation = 0
        self._silent_before = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> int:
        """Lets nothing more pass on the connections that are open now, and returns how many there are."""
        self._silent_before, self._generation = self._generation + 1, self._generation + 1
        return sum(item.fileno() >= 0 for item in self._sockets) // 2

    def close(self) -> None:
        """Closes all connections."""
        for item in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(*pair, self._generation), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if generation >= self._silent_before:
                    target.sendall(data)
        if generation >= self._silent_before:
            for item in (source, target):
                with contextlib.suppress(OSError):
                    item.shutdown(socket.SHUT_RDWR)
                item.close()
