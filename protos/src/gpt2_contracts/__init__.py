"""Contracts besides the protos: what one program writes to a file, a manifest, MLflow or Kafka and another one reads.

One module for each kind of artifact and each channel. Depends on the standard library alone, so that orchestration,
which does not import the services' packages, shares these definitions with them.
"""
