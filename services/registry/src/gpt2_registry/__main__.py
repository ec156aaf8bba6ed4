"""Starts the registry: `python -m gpt2_registry`."""

from gpt2_common.server import main
from gpt2_registry.service import REGISTRY

if __name__ == "__main__":
    main(REGISTRY)
