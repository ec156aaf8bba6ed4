"""Pipelines: from data to a registered model, from scratch or from existing weights."""
