"""A background thread that runs tasks in order, so that files are written while the caller reads and computes."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class BackgroundTasks:
    """Runs tasks in order on one thread. After one has failed, the later ones do not run.

    Args:
        name: Name of the thread.
        max_waiting: Tasks that may wait; `submit` blocks while there are as many.
    """

    def __init__(self, name: str, max_waiting: int) -> None:
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(max_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for all tasks. Raises the error of the one that failed, unless the body of the `with` raised one."""
        self._tasks.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def submit(self, task: Callable[[], None]) -> None:
        """Appends a task. Raises the error of an earlier one that failed."""
        self._raise()
        self._tasks.put(task)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is None:
                try:
                    task()
                except BaseException as error:  # noqa: BLE001 - raised on the thread that submits
                    self._error = error
