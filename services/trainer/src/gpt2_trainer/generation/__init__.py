"""Text from a model: sampling, decoding with a key-value cache, streaming, and the processes that do it."""
