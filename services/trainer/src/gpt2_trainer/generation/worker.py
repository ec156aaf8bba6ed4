"""A process that generates text with one model: `python -m gpt2_trainer.generation.worker FOLDER BACKEND PRECISION`.

A task comes as a line on standard input; `cancel` ends it early. Answers go to what was standard output: `piece`s, then
`end`, or `error`. The end of standard input means that the service is gone, and the process goes too.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from gpt2_common.logs import configure_logs
from gpt2_common.status import is_expected
from gpt2_trainer.generation.messages import CANCEL, GenerationTask, error_to_json
from gpt2_trainer.model.backend import BackendName, select_backend

_log = logging.getLogger(__name__)
_EXIT_ORPHANED = 75


def main() -> None:
    """Serves tasks until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not break into the answers.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, backend, precision = Path(sys.argv[1]), cast(BackendName, sys.argv[2]), sys.argv[3]
    configure_logs("trainer", os.environ.get("GPT2_LOG_LEVEL", "INFO"))
    tasks: queue.SimpleQueue[GenerationTask] = queue.SimpleQueue()
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(sys.stdin, tasks, cancelled), daemon=True).start()
    generator: Any = None
    while True:
        task = tasks.get()
        try:
            generator = generator or _load(folder, backend, precision)
            for piece in generator.generate(task, cancelled.is_set):
                _send(answers, {"piece": piece.to_json()})
            _send(answers, {"end": True})
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears of it
            if not is_expected(error):
                _log.exception("generation failed")
            _send(answers, error_to_json(error))


def _load(folder: Path, backend: BackendName, precision: str) -> Any:
    select_backend(backend)
    from gpt2_trainer.generation.engine import TextGenerator

    return TextGenerator(folder, precision)


def _listen(stream: IO[str], tasks: "queue.SimpleQueue[GenerationTask]", cancelled: threading.Event) -> None:
    for line in _lines(stream):
        if line == CANCEL:
            cancelled.set()
        else:
            cancelled.clear()
            tasks.put(GenerationTask.from_json(json.loads(line)))
    os._exit(_EXIT_ORPHANED)


def _lines(stream: IO[str]) -> Iterator[str]:
    while line := stream.readline():
        yield line


def _send(stream: IO[str], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
