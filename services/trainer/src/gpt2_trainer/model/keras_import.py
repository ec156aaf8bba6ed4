"""Imports Keras without its optional packages that nothing here uses: plots, tables, notebooks.

Where they are installed, as in a development environment, they take three quarters of the import's time.
"""

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

# Keras and TensorFlow work without each of them; the images of the services have none.
_OPTIONAL = ("IPython", "PIL", "h5py", "matplotlib", "pandas", "pydot", "sklearn")
# TensorFlow needs `requests`, and that one of the other two.
_OPTIONAL_WITH_JAX = (*_OPTIONAL, "charset_normalizer", "huggingface_hub", "requests", "tensorflow")
_OPTIONAL_WITH_TENSORFLOW = (*_OPTIONAL, "jax")


def import_keras(backend: str) -> None:
    """Imports Keras, whose backend the variable KERAS_BACKEND names already. Takes about a second."""
    with _hidden(_OPTIONAL_WITH_JAX if backend == "jax" else _OPTIONAL_WITH_TENSORFLOW), _without_collection():
        if backend == "tensorflow":
            import tensorflow  # noqa: F401 - heavy, and wanted with this backend alone
        import keras  # noqa: F401 - heavy


@contextmanager
def _hidden(names: Collection[str]) -> Iterator[None]:
    """Makes packages look uninstalled, for all threads. Those imported before stay."""
    hidden = [name for name in names if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    # None marks a module as missing.
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            if modules.get(name) is None:
                modules.pop(name, None)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Turns garbage collection off: a tenth of an import's time, and everything imported stays anyway."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
