"""The backend of Keras: how a process starts with one, compiles functions with it, and describes it."""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from gpt2_trainer.model.keras_import import import_keras

BackendName = Literal["tensorflow", "jax"]
BACKENDS: tuple[BackendName, ...] = ("tensorflow", "jax")
BackendSetting = Literal["auto", "tensorflow", "jax"]
AUTO: Final = "auto"
"""The setting by which each training's backend is chosen for it; see `calibration/choice.py`."""
DEFAULT_BACKEND: BackendName = "tensorflow"
"""With `auto`, what computes on CPUs where nothing is measured."""


def select_backend(name: BackendName) -> None:
    """Imports Keras with a backend. Call it before anything else in the process imports Keras.

    TensorFlow's CPU kernels become deterministic, so that a resumed training repeats the numbers of one that was never
    interrupted.
    """
    os.environ["KERAS_BACKEND"] = name
    # TensorFlow logs its kernels and missing GPUs in many lines; the trainer logs what matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for chatty in ("jax", "absl", "tensorflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if name == "tensorflow":
        # TensorFlow enables oneDNN itself on CPUs with AVX-512 only; on others products are up to 10 % faster, too.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    import_keras(name)
    if name == "tensorflow":
        import tensorflow as tf  # heavy, and wanted with this backend alone

        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


def compiled(function: Callable[..., Any], donated: int | None = None) -> Callable[..., Any]:
    """A function of tensors compiled with XLA, once for every combination of shapes.

    Args:
        function: A pure function of nested tensors.
        donated: Position of the argument whose memory the result may reuse, where the backend can.
    """
    import keras  # heavy; importing it fixes the backend

    if keras.config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        jitted: Callable[..., Any] = jax.jit(function, donate_argnums=() if donated is None else donated)
        return jitted
    import tensorflow as tf  # heavy, and wanted with this backend alone

    graph: Callable[..., Any] = tf.function(function, jit_compile=True, autograph=False, reduce_retracing=False)
    return graph


def device_names() -> list[str]:
    """Names of the devices that the backend computes on, such as `NVIDIA H100 80GB HBM3` or `cpu`."""
    import keras  # heavy; importing it fixes the backend

    if keras.config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        return [str(device.device_kind) for device in jax.local_devices()]
    import tensorflow as tf  # heavy, and wanted with this backend alone

    details = [tf.config.experimental.get_device_details(device) for device in tf.config.list_physical_devices("GPU")]
    return [str(item.get("device_name", "gpu")) for item in details] or ["cpu"]


def installed_version(package: str) -> str:
    """Version of a distribution, without importing it; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def environment() -> dict[str, str]:
    """What results depend on besides the code: `backend`, `packages` with their versions, `devices`."""
    import keras  # heavy; importing it fixes the backend

    backend = str(keras.config.backend())
    # Asked of the modules: TensorFlow comes by distributions of several names.
    packages = ("keras", backend, "numpy")
    return {
        "backend": backend,
        "packages": ", ".join(f"{name} {import_module(name).__version__}" for name in packages),
        "devices": ", ".join(device_names()),
    }
