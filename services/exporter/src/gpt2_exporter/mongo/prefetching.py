"""Prefetching: reads several parts on background threads, and yields their items in the order of the parts."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Part = TypeVar("Part")
Item = TypeVar("Item")

_STOP_SECONDS = 0.1


def prefetch(parts: Iterable[Part], read: Callable[[Part], Iterator[Item]], readers: int, ahead: int) -> Iterator[Item]:
    """Yields the items of all parts, part by part, while up to `readers` parts are read on background threads.

    Args:
        parts: The parts to read, in order.
        read: Reads one of them; called on a background thread. What it raises is raised here, in its place.
        readers: Parts to read at once, from 1.
        ahead: Items of each part that may wait.
    """
    remaining = iter(parts)
    running: deque[_Reader[Item]] = deque()
    try:
        while True:
            while len(running) < readers and (part := next(remaining, None)) is not None:
                running.append(_Reader(lambda part=part: read(part), ahead))  # type: ignore[misc]
            if not running:
                return
            yield from running[0]
            running.popleft()
    finally:
        for reader in running:
            reader.stop()
        for reader in running:
            reader.join()


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a part, and the error that ended it."""

    error: BaseException | None


class _Reader(Generic[Item]):
    """A thread that reads one part, at most `ahead` items ahead of the iteration."""

    def __init__(self, items: Callable[[], Iterator[Item]], ahead: int) -> None:
        self._items = items
        self._queue: queue.Queue[Item | _End] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while not isinstance(item := self._queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def stop(self) -> None:
        """Requests the thread to stop before its next item."""
        self._stopped.set()

    def join(self) -> None:
        """Waits for the thread."""
        self._thread.join()

    def _read(self) -> None:
        error = None
        try:
            for item in self._items():
                if not self._put(item):
                    return
        except BaseException as raised:  # noqa: BLE001 - raised in __iter__
            error = raised
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_STOP_SECONDS)
            except queue.Full:
                continue
            return True
        return False
