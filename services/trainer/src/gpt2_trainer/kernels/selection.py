"""The one place that chooses kernels, from the backend, its device, the compute dtype and what compiles the graph."""

from dataclasses import replace
from functools import partial

from keras import config

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import MAX_LOGITS
from gpt2_trainer.kernels import cross_entropy, custom_gradients, flash_attention, packed_bfloat16
from gpt2_trainer.model import gpt2
from gpt2_trainer.model.gpt2 import GPT2, Kernels


def create_model(
    architecture: Architecture,
    compute_dtype: str = "float32",
    *,
    training: bool = False,
    remat: bool = False,
    max_logits: int = MAX_LOGITS,
) -> GPT2:
    """A GPT-2 with the fastest kernels.

    Args:
        architecture: Sizes.
        compute_dtype: `float32` or `bfloat16`.
        training: Whether it is called from a training step, rather than from a function that XLA compiles as a whole.
        remat: See `GPT2`.
        max_logits: Logits that may exist at one time in a loss.
    """
    compiled = compiles_training() if training else True
    kernels = select_kernels(compute_dtype, architecture.head_size, compiled=compiled, max_logits=max_logits)
    return GPT2(architecture=architecture, compute_dtype=compute_dtype, remat=remat, kernels=kernels)


def compiles_training() -> bool:
    """Whether XLA compiles a training step as a whole: on all but TensorFlow's CPUs, see `tensorflow_cpu.py`."""
    if config.backend() != "tensorflow":
        return True
    import tensorflow as tf  # heavy, and wanted with this backend alone

    return bool(tf.config.list_logical_devices("GPU"))


def select_kernels(
    compute_dtype: str, head_size: int, *, compiled: bool = True, max_logits: int = MAX_LOGITS
) -> Kernels:
    """The fastest kernels of the backend that Keras was started with.

    Args:
        compute_dtype: `float32` or `bfloat16`.
        head_size: Width of an attention head.
        compiled: Whether XLA compiles what the kernels are called from, as a whole; see `compiles_training`.
        max_logits: Logits that may exist at one time in a loss.
    """
    attention = partial(gpt2.attention, weights=custom_gradients.attention_weights)
    kernels = Kernels(
        embed=packed_bfloat16.embed,
        matmul=packed_bfloat16.matmul,
        layer_norm=custom_gradients.layer_norm,
        attention=attention,
        causal_attention=attention,
        logits=packed_bfloat16.logits,
        token_losses=partial(cross_entropy.token_losses, max_logits=max_logits),
        mean_loss=partial(cross_entropy.mean_loss, max_logits=max_logits),
    )
    if flash_attention.is_supported(compute_dtype, head_size):
        return replace(kernels, causal_attention=flash_attention.causal_attention)
    if compiled:
        return kernels
    from gpt2_trainer.kernels import tensorflow_cpu  # imports TensorFlow

    attention = partial(gpt2.attention, weights=tensorflow_cpu.between_products(custom_gradients.attention_weights))
    return replace(
        kernels,
        matmul=tensorflow_cpu.matmul,
        layer_norm=tensorflow_cpu.between_products(kernels.layer_norm),
        gelu=tensorflow_cpu.between_products(kernels.gelu),
        attention=attention,
        causal_attention=attention,
    )
