"""Runners of pipelines: local, Beam, Airflow and Kubeflow."""
