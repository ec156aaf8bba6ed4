"""What kernels are written with on both backends: custom gradients, sums of rows or columns, transposed products."""

from collections.abc import Callable
from typing import Any

from keras import config, ops

_PAGE_BYTES = 4096


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
    if values.shape[-1] is not None and _is_tensorflow_on_cpu():
        return ops.matmul(values, ops.ones((values.shape[-1], 1), "float32"))
    return ops.sum(values, axis=-1, keepdims=True)


def column_sums(values: Any) -> Any:
    """Sums over all axes but the last of float32 [..., width]: [width].

    TensorFlow's XLA on CPUs walks down one column after the other, a number at a time. The sum of two halves is one of
    whole rows, and with such sums the gradient of a layer norm takes 1.0 ms of a core, not 1.8 (1,024 x 256).
    """
    rows = ops.reshape(values, (-1, values.shape[-1]))
    while rows.shape[0] and rows.shape[0] % 2 == 0 and _is_tensorflow_on_cpu():
        half = rows.shape[0] // 2
        rows = rows[:half] + rows[half:]
    return ops.sum(rows, axis=0)


def has_page_rows(matrix: Any) -> bool:
    """Whether float32 rows are whole pages: then a column's numbers share one place of the cache.

    oneDNN walks down columns where it reads a matrix as its transpose, and takes a quarter longer for such a matrix.
    """
    return bool(matrix.dtype == "float32" and 4 * matrix.shape[1] % _PAGE_BYTES == 0)


def product(first: Any, second: Any, *, transpose_first: bool = False, transpose_second: bool = False) -> Any:
    """Product of matrices, either of them [rows, columns] read as its transpose without a copy."""
    if config.backend() == "tensorflow" and len(first.shape) == 2:
        import tensorflow as tf  # heavy, and wanted with this backend alone

        if transpose_first and not transpose_second and has_page_rows(first) and _is_tensorflow_on_cpu():
            # The gradient of an embedding of 8,192 x 256: 34 ms of a core, not 41 (1,024 tokens, Xeon with AMX).
            return tf.transpose(tf.matmul(second, first, transpose_a=True))
        return tf.matmul(first, second, transpose_a=transpose_first, transpose_b=transpose_second)
    # XLA fuses a transposition with the product.
    return ops.matmul(
        ops.transpose(first) if transpose_first else first, ops.transpose(second) if transpose_second else second
    )


def _is_tensorflow_on_cpu() -> bool:
    if config.backend() != "tensorflow":
        return False
    import tensorflow as tf  # heavy, and wanted with this backend alone

    return not tf.config.list_physical_devices("GPU")
