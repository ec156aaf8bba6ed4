"""The registry: models in MLflow, with labels for what they are ready for."""
