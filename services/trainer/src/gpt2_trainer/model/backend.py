"""What differs between Keras' backends outside training steps: which one is chosen, and how a function is compiled."""

import logging
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

BackendName = Literal["tensorflow", "jax"]
_AMPERE = 8.0
_PAGE_BYTES = 4096
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
        # TensorFlow does so by itself on CPUs with AVX-512 alone; on others products are up to a tenth faster, too.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
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


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets XLA compile a pure function of tensors, forwards and backwards, inside a TensorFlow graph that it does not.

    Going backwards, the function is computed again, so that nothing inside it is kept.
    """
    import tensorflow as tf  # heavy, and wanted with this backend alone

    def take_gradients(inputs: Any, upstream: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([value for value in inputs if value.dtype.is_floating])
            outputs = function(*inputs)
        return tape.gradient(outputs, inputs, upstream)

    forwards = tf.function(function, jit_compile=True, autograph=False)
    backwards = tf.function(take_gradients, jit_compile=True, autograph=False)

    def call(*inputs: Any) -> Any:
        return forwards(*inputs), lambda upstream: backwards(inputs, upstream)

    differentiable: Callable[..., Any] = tf.custom_gradient(call)
    return differentiable


def linear(inputs: Any, weight: Any) -> Any:
    """Product of `inputs` [..., rows] and `weight` [rows, columns] in a TensorFlow graph that XLA does not compile."""
    import tensorflow as tf  # heavy, and wanted with this backend alone

    def call(rows: Any, weight: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            towards_weight = tf.matmul(rows, upstream, transpose_a=True)
            if weight.dtype != tf.float32 or 4 * weight.shape[1] % _PAGE_BYTES:
                return tf.matmul(upstream, weight, transpose_b=True), towards_weight
            # oneDNN would walk down columns whose numbers have one place in the cache, and take a quarter longer: it is
            # worth a copy, and TensorFlow would take that back into the product, were it not a snapshot.
            return tf.matmul(upstream, tf.raw_ops.Snapshot(input=tf.transpose(weight))), towards_weight

        return tf.matmul(rows, weight), gradient

    columns = tf.custom_gradient(call)(tf.reshape(inputs, (-1, inputs.shape[-1])), weight)
    return tf.reshape(columns, (*inputs.shape[:-1], weight.shape[-1]))


def with_gradient(function: Callable[..., tuple[Any, Callable[..., Any]]]) -> Callable[..., Any]:
    """A function of tensors that says its own gradient.

    Args:
        function: Returns its result and a function from the result's gradient to that of each argument.
    """
    from keras import ops  # heavy; importing it fixes the backend

    def call(*inputs: Any) -> tuple[Any, Callable[..., Any]]:
        result, gradient = function(*inputs)

        # Keras hands it over by position on TensorFlow, by name on JAX.
        def towards(*arguments: Any, upstream: Any = None) -> Any:
            return gradient(arguments[0] if upstream is None else upstream)

        return result, towards

    differentiable: Callable[..., Any] = ops.custom_gradient(call)
    return differentiable


def row_sums(values: Any) -> Any:
    """Sums over the last axis, which stays, of float32 [..., width].

    On CPUs TensorFlow's XLA sums in passes of their own, each over 32 numbers; a product with ones it makes part of
    what comes before. (A GPU may multiply in fewer bits.)
    """
    from keras import config, ops  # heavy; importing it fixes the backend

    if config.backend() == "tensorflow" and values.shape[-1] is not None:
        import tensorflow as tf  # heavy, and wanted with this backend alone

        if not tf.config.list_physical_devices("GPU"):
            return ops.matmul(values, ops.ones((values.shape[-1], 1), "float32"))
    return ops.sum(values, axis=-1, keepdims=True)


def product(first: Any, second: Any, *, transpose_first: bool = False, transpose_second: bool = False) -> Any:
    """Product of matrices, either of them [rows, columns] transposed where it lies: no copy is made."""
    from keras import config, ops  # heavy; importing it fixes the backend

    if config.backend() == "tensorflow" and len(first.shape) == 2:
        import tensorflow as tf  # heavy, and wanted with this backend alone

        return tf.matmul(first, second, transpose_a=transpose_first, transpose_b=transpose_second)
    # XLA takes a transposition into the product.
    return ops.matmul(
        ops.transpose(first) if transpose_first else first, ops.transpose(second) if transpose_second else second
    )


def has_flash_attention(precision: str, head_size: int) -> bool:
    """Whether the device has a fused attention for a precision and a width of heads: cuDNN's, which JAX calls.

    It takes 16-bit numbers, widths that are multiples of 8 and at most 128, and GPUs from Ampere on.
    """
    import keras  # heavy; importing it fixes the backend

    if keras.config.backend() != "jax" or precision == "float32" or head_size % 8 or head_size > 128:
        return False
    import jax  # heavy, and wanted with this backend alone

    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", "0"))
    return device.platform == "gpu" and float(capability) >= _AMPERE


def device_names() -> list[str]:
    """What the devices that the backend computes on call themselves, such as `NVIDIA H100 80GB HBM3` or `cpu`."""
    import keras  # heavy; importing it fixes the backend

    if keras.config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        return [str(device.device_kind) for device in jax.local_devices()]
    import tensorflow as tf  # heavy, and wanted with this backend alone

    details = [tf.config.experimental.get_device_details(device) for device in tf.config.list_physical_devices("GPU")]
    return [str(item.get("device_name", "gpu")) for item in details] or ["cpu"]


def environment() -> dict[str, str]:
    """What the numbers depend on besides the code: `backend`, `packages` with their versions, `devices`."""
    import keras  # heavy; importing it fixes the backend

    backend = str(keras.config.backend())
    packages = ("keras", backend, "numpy")
    return {
        "backend": backend,
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "devices": ", ".join(device_names()),
    }
