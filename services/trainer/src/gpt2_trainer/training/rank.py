"""Which of a training's nodes this process is: read from the variables that Kubeflow Trainer's JAX runtime sets.

Apart from `nodes.py`, which needs JAX: a pod asks before anything heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_common.errors import FailedPrecondition

_COUNT, _INDEX, _COORDINATOR = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes of a training.

    Args:
        index: Which one, from 0.
        count: Processes of the training.
        coordinator: Host and port at which the first one coordinates them.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them compute."""
        return self.index == 0

    @classmethod
    def of(cls, environment: Mapping[str, str], num_nodes: int = 1) -> "Rank":
        """Reads the variables; without them the process is alone.

        Args:
            environment: The process's environment.
            num_nodes: Nodes that the training asks for. There may be fewer or more of them in a later attempt.

        Raises:
            FailedPrecondition: A variable is missing or wrong.
        """
        if _COUNT not in environment:
            if num_nodes > 1:
                raise FailedPrecondition(
                    f"config.num_nodes: {num_nodes} nodes are asked for, and {_COUNT} is not set; train with a JAX "
                    f"runtime of Kubeflow Trainer, or set {_COUNT}, {_INDEX} and {_COORDINATOR} for each process"
                )
            return cls()
        count = _number(environment, _COUNT, minimum=1)
        if count == 1:
            return cls()
        index = _number(environment, _INDEX, minimum=0)
        if index >= count:
            raise FailedPrecondition(f"{_INDEX}: {index} is not below {_COUNT}, which is {count}; number them from 0")
        coordinator = environment.get(_COORDINATOR, "")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise FailedPrecondition(
                f"{_COORDINATOR}: {coordinator!r} is no address; set it to host and port of process 0, HOST:PORT"
            )
        return cls(index, count, coordinator)


def _number(environment: Mapping[str, str], name: str, minimum: int) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or int(text) < minimum:
        raise FailedPrecondition(f"{name}: {text!r} is no integer of at least {minimum}; set it for each process")
    return int(text)
