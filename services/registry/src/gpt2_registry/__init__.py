"""The registry: models in MLflow, and labels that say what they are ready for."""
