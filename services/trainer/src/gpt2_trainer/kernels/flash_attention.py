"""cuDNN's fused causal attention (Dao et al. 2022), which JAX calls: no [time, time] scores in memory.

Not measured on a GPU yet.
"""

from typing import Any

from keras import config, ops

_AMPERE = 8.0
_MAX_HEAD_SIZE = 128


def is_supported(compute_dtype: str, head_size: int) -> bool:
    """Whether the device has it: 16-bit dtypes, head sizes that are multiples of 8, and GPUs from Ampere on."""
    if config.backend() != "jax" or compute_dtype == "float32" or head_size % 8 or head_size > _MAX_HEAD_SIZE:
        return False
    import jax  # heavy, and wanted with this backend alone

    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", "0"))
    return device.platform == "gpu" and float(capability) >= _AMPERE


def causal_attention(queries: Any, keys: Any, values: Any, _mask: Any, *, scale: float) -> Any:
    """See `gpt2.attention` and `Kernels`; [batch, heads, time, head_size]."""
    # It takes [batch, time, heads, head_size]; XLA drops transposes that undo each other.
    queries, keys, values = (ops.transpose(part, (0, 2, 1, 3)) for part in (queries, keys, values))
    mixed = ops.dot_product_attention(queries, keys, values, scale=scale, is_causal=True, flash_attention=True)
    return ops.transpose(mixed, (0, 2, 1, 3))
