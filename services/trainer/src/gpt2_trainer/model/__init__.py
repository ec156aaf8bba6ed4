"""GPT-2 in Keras operations: its weights, its arithmetic, and the few lines that differ between backends."""
