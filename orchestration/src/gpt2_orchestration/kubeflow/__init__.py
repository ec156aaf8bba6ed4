"""Kubeflow Pipelines 2: a pipeline compiled to its YAML, and the task that each of its containers runs."""
