"""Text from a model: sampling, decoding with a KV cache, streaming, and the worker processes."""
