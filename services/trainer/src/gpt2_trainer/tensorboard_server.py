"""`python -m gpt2_trainer.tensorboard_server FLAG...`: TensorBoard that leaves TensorFlow alone.

Where TensorFlow is installed TensorBoard imports it, for object stores and graph tools that a local folder of event
files does not need: ten times the memory (some 800 MB) and start time. Its own switch for that is a build flag, the
presence of the module `tensorboard.compat.notf`.
"""

import sys
from types import ModuleType


def main() -> None:
    """Serves until a signal ends the process."""
    sys.modules["tensorboard.compat.notf"] = ModuleType("tensorboard.compat.notf")
    from tensorboard.main import run_main

    run_main()


if __name__ == "__main__":
    main()
