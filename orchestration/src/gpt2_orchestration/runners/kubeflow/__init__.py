"""Kubeflow Pipelines 2: a compiler to its YAML, and the program that each container runs."""
