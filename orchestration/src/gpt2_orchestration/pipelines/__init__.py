"""The pipelines: from data to a registered model, from scratch or from existing weights."""
