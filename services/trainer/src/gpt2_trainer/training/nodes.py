"""What the nodes of a training agree on: one JAX process on each, of which the first writes what all compute.

All make the same collective calls in the same order. A node that dies ends the others: their next collective fails, or
JAX's coordination service ends them after a heartbeat timeout. The training is then resumed by another attempt.
"""

import logging
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpt2_common.errors import FailedPrecondition, JobCancelled, JobSuspended, Unavailable
from gpt2_trainer.model.weights import Weights
from gpt2_trainer.training.rank import Rank

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_MAX_TEXT_BYTES = 1024
_LOST = re.compile(r"\b(Gloo|NCCL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b")
"""Libraries of collectives, and statuses of JAX's coordination service, in errors of JAX when a node is lost."""
_AFTER_OUR_TIMEOUT_SECONDS = 60
"""JAX ends the process when its own time is over, without an error that can be reported."""
_NOTHING, _SUSPEND, _CANCEL = 0, 1, 2


class Nodes:
    """The nodes of a training that has but one, which agrees with itself."""

    is_first = True

    def from_first(self, value: int) -> int:
        """An integer of the first node, on all of them."""
        return value

    def text_from_first(self, text: str) -> str:
        """A text of the first node, on all of them."""
        return text

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on any node."""
        return flag

    def wait_for_all(self) -> None:
        """Waits until every node has come here."""

    def require_equal(self, values: Mapping[str, int]) -> None:
        """Requires that each node has the same values by name. Raises FailedPrecondition."""

    def check_interrupted(self, check: Callable[[], None]) -> None:
        """Raises JobInterrupted, on all nodes in the same call, when `check` raises it on one."""
        check()

    def is_lost(self, error: BaseException) -> bool:  # noqa: ARG002 - a single node loses no other
        """Whether an error says that another node has ended."""
        return False


class JaxNodes(Nodes):
    """Several nodes, whose processes have joined by `join_nodes`.

    Args:
        rank: Which one this is.
    """

    def __init__(self, rank: Rank) -> None:
        import jax  # heavy, and wanted with this backend alone

        self.is_first = rank.is_first
        # Of each process one device, as the number of devices may differ.
        first_devices = {device.process_index: device for device in reversed(jax.devices())}
        devices = np.array([first_devices[index] for index in sorted(first_devices)])
        mesh = jax.sharding.Mesh(devices, ("node",))
        self._one_each = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("node"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._gather = jax.jit(lambda values: values, out_shardings=everywhere)
        self._maximum = jax.jit(lambda values: values.max(), out_shardings=everywhere)
        self._votes: deque[Any] = deque()

    def from_first(self, value: int) -> int:
        """See Nodes."""
        return int(self._gathered(np.asarray([value], np.int32))[0, 0])

    def text_from_first(self, text: str) -> str:
        """See Nodes."""
        content = text.encode().ljust(_MAX_TEXT_BYTES, b"\0")
        return bytes(self._gathered(np.frombuffer(content, np.uint8))[0]).rstrip(b"\0").decode()

    def any(self, flag: bool) -> bool:
        """See Nodes."""
        return bool(self._gathered(np.asarray([flag], np.int32)).any())

    def wait_for_all(self) -> None:
        """See Nodes."""
        self._gathered(np.zeros(1, np.int32))

    def require_equal(self, values: Mapping[str, int]) -> None:
        """See Nodes."""
        found = self._gathered(np.asarray(list(values.values()), np.uint32))
        for name, column in zip(values, found.T, strict=True):
            other = np.flatnonzero(column != column[0])
            if len(other):
                raise FailedPrecondition(
                    f"config.num_nodes: node {other[0]} begins with another {name} than node 0; run the same image on "
                    "like processors, and give all nodes the same folders GPT2_ARTIFACT_ROOT and GPT2_SCRATCH_FOLDER"
                )

    def check_interrupted(self, check: Callable[[], None]) -> None:
        """See Nodes.

        A vote is counted one call later, so that no node waits for the update that it has just started.
        """
        vote = _NOTHING
        try:
            check()
        except JobSuspended:
            vote = _SUSPEND
        except JobCancelled:
            vote = _CANCEL
        self._votes.append(self._maximum(self._placed(np.asarray([vote], np.int32))))
        if len(self._votes) < 2:
            return
        decision = int(self._votes.popleft())
        if decision == _CANCEL:
            raise JobCancelled("the job was cancelled")
        if decision == _SUSPEND:
            raise JobSuspended("a node is stopping")

    def is_lost(self, error: BaseException) -> bool:
        """See Nodes."""
        return _is_lost(error)

    def _placed(self, row: Any) -> Any:
        import jax  # heavy, and wanted with this backend alone

        return jax.make_array_from_process_local_data(self._one_each, row[None])

    def _gathered(self, row: Any) -> Any:
        """The rows of all nodes, each of the same length."""
        return np.asarray(self._gather(self._placed(row)))


def join_nodes(
    rank: Rank, start_seconds: float, heartbeat_seconds: int, check_cancelled: Callable[[], None]
) -> JaxNodes:
    """Waits for the other nodes of a training, and makes one system of their devices.

    Call it after the backend has been selected, and before anything is computed.

    Args:
        rank: Which one this is.
        start_seconds: Time to wait.
        heartbeat_seconds: Time without a sign of life after which a node counts as dead.
        check_cancelled: Called while it waits; what it raises ends the wait.

    Raises:
        Unavailable: The others have not come in time.
        JobSuspended: One of them has ended meanwhile.
    """
    import jax  # heavy, and wanted with this backend alone

    # It would take SIGTERM, which suspends the job.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs two programs under way at once may exchange in another order here than on another node, and hang.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                rank.coordinator,
                rank.count,
                rank.index,
                cluster_detection_method="deactivate",
                initialization_timeout=int(start_seconds) + _AFTER_OUR_TIMEOUT_SECONDS,
                heartbeat_timeout_seconds=heartbeat_seconds,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the caller sees it
            failures.append(error)

    # JAX cannot be interrupted while it waits.
    thread = threading.Thread(target=initialize, name="nodes", daemon=True)
    thread.start()
    deadline = time.monotonic() + start_seconds
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        check_cancelled()
        if thread.is_alive() and time.monotonic() > deadline:
            raise Unavailable(
                f"JAX_COORDINATOR_ADDRESS: the {rank.count} nodes of this training did not meet at {rank.coordinator} "
                f"in {start_seconds:.0f} s; check that each has a pod that runs and reaches it, or raise "
                "GPT2_NODE_START_SECONDS"
            )
    try:
        if failures:
            raise failures[0]
        nodes = JaxNodes(rank)
    except Exception as error:
        if _is_lost(error):
            _log.warning("another node of this training has ended as it started, and this one ends too: %s", error)
            raise JobSuspended("another node of this training has ended") from error
        raise Unavailable(
            f"JAX_COORDINATOR_ADDRESS: node {rank.index} of {rank.count} cannot join the others at {rank.coordinator} "
            f"({error}); check the address and the other pods"
        ) from error
    _log.info("node %d of %d has joined the others at %s", rank.index, rank.count, rank.coordinator)
    return nodes


def _is_lost(error: BaseException) -> bool:
    """Whether an error of JAX says that another process has ended."""
    return isinstance(error, (RuntimeError, ValueError)) and bool(_LOST.search(str(error)))


def checksum_of(tensors: Weights) -> int:
    """A CRC-32 of tensors with their names."""
    checksum = 0
    for name, value in sorted(tensors.items()):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, checksum)
    return checksum
