"""Keeps changes of one model's labels apart, over all replicas of the registry and the processes of its jobs.

MLflow sets an alias whatever it was before, and a change is several of its calls: who changes labels holds a lease in
the database that the replicas share. Registries with separate databases must not change labels of one MLflow server.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sql

from gpt2_common.errors import Unavailable
from gpt2_common.lease import Lease, LeaseHolder

_RETRY_SECONDS = 0.05
_WAIT_SECONDS = 60.0
_RENEWALS = 10
"""In the time of a lease, while it is held: calls of MLflow can take longer than that."""


class LabelLock:
    """The lock of all models, for the threads of one process.

    Args:
        engine: The service's database.
        seconds: Time after which the lock of a process that has died passes to another.
    """

    def __init__(self, engine: sql.Engine, seconds: float) -> None:
        self._engine = engine
        self._holder = LeaseHolder.this_process(seconds)
        # A lease is one of the process; its threads take turns.
        self._threads = threading.RLock()
        self._held: Lease | None = None

    @contextmanager
    def hold(self, model_name: str) -> Iterator[None]:
        """Waits for the lock of a model, and holds it; a thread that holds one may take the same again.

        Raises:
            Unavailable: Another process has held it for a minute.
        """
        with self._threads:
            if self._held is not None:
                yield
                return
            name = f"labels {hashlib.sha256(model_name.encode()).hexdigest()[:32]}"
            lease = Lease(self._engine, name, self._holder)
            _wait_for(lease, model_name)
            self._held = lease
            released = threading.Event()
            renewal = threading.Thread(target=self._renew, args=(lease, released), daemon=True)
            renewal.start()
            try:
                yield
            finally:
                self._held = None
                released.set()
                renewal.join()
                lease.release()

    def require(self) -> None:
        """Raises Unavailable when the lock was lost, as this process stood still. Call it directly before a change."""
        if self._held is None or not self._held.hold():
            raise Unavailable("the lock of the model's labels has passed to another replica: retry")

    def _renew(self, lease: Lease, released: threading.Event) -> None:
        while not released.wait(self._holder.seconds / _RENEWALS):
            if not lease.hold():
                return


def _wait_for(lease: Lease, model_name: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not lease.hold():
        if time.monotonic() > deadline:
            raise Unavailable(f"labels of model {model_name!r} are being changed by another replica: retry")
        time.sleep(_RETRY_SECONDS)
