"""What differs between Keras' backends outside training steps: which one is chosen, and how a function is compiled."""

import logging
import os
from collections.abc import Callable
from typing import Any, Literal

BackendName = Literal["tensorflow", "jax"]
BACKENDS: tuple[BackendName, ...] = ("tensorflow", "jax")


def select_backend(name: BackendName) -> None:
    """Makes Keras use a backend. To be called in a process of one's own, before anything imports Keras.

    With TensorFlow, CPU kernels are made deterministic, so that a resumed training repeats the numbers of one that was
    never interrupted.
    """
    os.environ["KERAS_BACKEND"] = name
    # TensorFlow tells of its kernels and of missing GPUs in many lines; what matters is logged by us.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for chatty in ("jax", "absl", "tensorflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if name == "tensorflow":
        import tensorflow as tf  # heavy, and wanted with this backend alone

        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


def compiled(function: Callable[..., Any], donated: int | None = None) -> Callable[..., Any]:
    """Compiles a function of tensors with XLA; it is compiled again for every new combination of shapes.

    Args:
        function: A pure function of nested tensors.
        donated: Number of the argument whose memory the result may take over, where the backend can.
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
    """What the devices that the backend computes on call themselves, such as `NVIDIA H100 80GB HBM3` or `cpu`."""
    import keras  # heavy; importing it fixes the backend

    if keras.config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        return [str(device.device_kind) for device in jax.local_devices()]
    import tensorflow as tf  # heavy, and wanted with this backend alone

    details = [tf.config.experimental.get_device_details(device) for device in tf.config.list_physical_devices("GPU")]
    return [str(item.get("device_name", "gpu")) for item in details] or ["cpu"]
