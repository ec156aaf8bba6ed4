"""Airflow: DAGs of pipelines, through TFX or by calling the services directly.

Parsing a DAG file does not import TFX; tasks import it when they run.
"""
