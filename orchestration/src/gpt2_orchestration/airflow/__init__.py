"""Airflow: DAGs of pipelines, through TFX or by calling the services directly.

Nothing here imports TFX when a DAG file is read; the tasks do, when they run.
"""
