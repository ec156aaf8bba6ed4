"""A process that generates text with one model: `python -m gpt2_trainer.generation.worker FOLDER OPTIONS`.

Each task is answered by messages of type `piece`, then `end` or `error`; `cancel` ends it early.
"""

import logging
import os
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2_common.artifacts.manifest import sha256_of
from gpt2_common.child_process import CANCEL, ServiceConnection
from gpt2_common.logs import configure_logs
from gpt2_common.status import is_expected
from gpt2_trainer.formats.huggingface import CONFIG, read_huggingface
from gpt2_trainer.generation.worker_messages import GenerationTask, WorkerOptions, error_to_json
from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.compile_cache import CompileCache

_log = logging.getLogger(__name__)


def main() -> None:
    """Serves tasks until standard input ends."""
    service = ServiceConnection.open()
    folder, options = Path(sys.argv[1]), WorkerOptions.from_argument(sys.argv[2])
    configure_logs("trainer", os.environ.get("GPT2_LOG_LEVEL", "INFO"))
    cache = CompileCache(options.compile_cache, options.backend, _subject(folder, options))
    tasks: queue.SimpleQueue[GenerationTask] = queue.SimpleQueue()
    cancelled = threading.Event()

    def handle(command: str, content: Any) -> None:
        if command == CANCEL:
            cancelled.set()
        else:
            cancelled.clear()
            tasks.put(GenerationTask.from_json(content))

    service.listen(handle)
    generator: Any = None
    while True:
        task = tasks.get()
        try:
            generator = generator or _load(folder, options)
            for piece in generator.generate(task, cancelled.is_set):
                service.send({"piece": piece.to_json()})
            cache.publish()
            service.send({"end": None})
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller receives it
            if not is_expected(error):
                _log.exception("generation failed")
            service.send({"error": error_to_json(error)})


def _subject(folder: Path, options: WorkerOptions) -> str:
    """What the programs of a model depend on: its sizes, whatever its weights are."""
    with suppress(OSError):
        return f"generate {options.precision} {sha256_of(folder / CONFIG)}"
    return "a model that cannot be read"


def _load(folder: Path, options: WorkerOptions) -> Any:
    with ThreadPoolExecutor(1) as threads:
        # The weights come from the disk while Keras is imported.
        reading = threads.submit(read_huggingface, folder, "model_uri")
        select_backend(options.backend)
        from gpt2_trainer.generation.text_generator import TextGenerator

        return TextGenerator(folder, *reading.result(), options.precision)


if __name__ == "__main__":
    main()
