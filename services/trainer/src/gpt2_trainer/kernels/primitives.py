"""What kernels are written with on both backends: custom gradients, sums of rows, products with transposes."""

from collections.abc import Callable
from typing import Any

from keras import config, ops


def with_gradient(function: Callable[..., tuple[Any, Callable[..., Any]]]) -> Callable[..., Any]:
    """A differentiable function of tensors with a custom gradient.

    Args:
        function: Returns its result and a function from the result's gradient to that of each argument.
    """

    def call(*inputs: Any) -> tuple[Any, Callable[..., Any]]:
        result, gradient = function(*inputs)

        # Keras passes the upstream gradient by position on TensorFlow, by name on JAX.
        def pull_back(*arguments: Any, upstream: Any = None) -> Any:
            return gradient(arguments[0] if upstream is None else upstream)

        return result, pull_back

    differentiable: Callable[..., Any] = ops.custom_gradient(call)
    return differentiable


def row_sums(values: Any) -> Any:
    """Sums over the last axis of float32 [..., width]: [..., 1].

    TensorFlow's XLA on CPUs makes a separate pass of a sum, over 32 numbers at a time; a product with ones is fused
    with what comes before. The sum of squares of an embedding's gradient takes 7 ms so, where `ops.sum` takes 30. (On
    a GPU a product may have fewer bits.)
    """
    if config.backend() == "tensorflow" and values.shape[-1] is not None:
        import tensorflow as tf  # heavy, and wanted with this backend alone

        if not tf.config.list_physical_devices("GPU"):
            return ops.matmul(values, ops.ones((values.shape[-1], 1), "float32"))
    return ops.sum(values, axis=-1, keepdims=True)


def product(first: Any, second: Any, *, transpose_first: bool = False, transpose_second: bool = False) -> Any:
    """Product of matrices, either of them [rows, columns] read as its transpose without a copy."""
    if config.backend() == "tensorflow" and len(first.shape) == 2:
        import tensorflow as tf  # heavy, and wanted with this backend alone

        return tf.matmul(first, second, transpose_a=transpose_first, transpose_b=transpose_second)
    # XLA fuses a transposition with the product.
    return ops.matmul(
        ops.transpose(first) if transpose_first else first, ops.transpose(second) if transpose_second else second
    )
