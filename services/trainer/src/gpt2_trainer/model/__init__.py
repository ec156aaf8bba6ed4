"""GPT-2 in Keras operations: its definition, weights, LoRA and dropout, and the backend that computes it."""
