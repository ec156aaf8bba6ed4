"""Starts the trainer: `python -m gpt2_trainer`."""

from gpt2_common.server import main
from gpt2_trainer.service import TRAINER

if __name__ == "__main__":
    main(TRAINER)
